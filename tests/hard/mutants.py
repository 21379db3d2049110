"""Mutants: small mistakes planted into the modules that numbers depend on, and which of them the tests catch.

    python tests/hard/mutants.py [--per-area N] [--areas lens,scan] [--out FILE] [--workers 2]

Each mutant is one change that cosmic-ray makes to one module (another operator, a number that is off by one, a
condition turned round, a loop that does nothing). The module's own tests run on it in a process of their own, in a
copy of the checkout. A mutant counts as killed where a test fails, or where the tests take much longer than without it.

Chosen by a seed: N mutants of each area, in proportion to the size of its modules. Mutants that change nothing but
annotations are left out. Exits 1 where less than 85 % of all are killed.
"""

import argparse
import ast
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENOUGH = 0.85


@dataclass(frozen=True)
class Area:
    """Modules and the tests that are theirs."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


def _within(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}.py" for name in names)


AREAS = {
    "lens": Area(
        _within(
            "layerlens/lens", "criterion", "divergence", "head", "ranking", "reading", "sums", "tiled", "transport"
        ),
        _within(
            "tests/lens", "test_criterion", "test_reading", "test_ranking", "test_divergence", "test_through_lenses"
        ),
    ),
    "scan": Area(
        (*_within("layerlens/decode", "scan", "criteria"), "layerlens/formulas.py"),
        _within("tests/decode", "test_scan", "test_criteria", "test_non_finite"),
    ),
    "records": Area(
        _within("layerlens/records", "files", "merge", "reader", "shape", "store", "tidy", "disagreement"),
        _within(
            "tests/records", "test_shape", "test_store", "test_merge", "test_tidy", "test_damaged", "test_disagreement"
        ),
    ),
    "statistics": Area(
        _within("layerlens/analysis", "agreement", "paired", "pairing", "partition", "power", "shares", "uncertainty"),
        _within(
            "tests/analysis",
            *("test_uncertainty", "test_paired", "test_pairing", "test_partition", "test_shares", "test_agreement"),
            "test_evaluation",
        ),
    ),
    "drafts": Area(
        _within("layerlens/decode/speculative", "acceptance", "loop"),
        _within("tests/decode/speculative", "test_drafter", "test_sampling", "test_lossless"),
    ),
    "scorers": Area(
        _within("layerlens/evaluation/scoring", "numbers", "stated", "words"),
        _within("tests/evaluation/scoring", "test_numbers", "test_stated", "test_words"),
    ),
}


@dataclass(frozen=True)
class Mutant:
    """One change to one module."""

    area: str
    module: str
    operator: str
    line: int
    before: str
    """The line as it is."""
    after: str
    """The line as the mutant has it."""
    source: str
    """The whole module with the change."""

    @property
    def shown(self) -> dict[str, object]:
        """For reports: everything but the source."""
        return {name: value for name, value in asdict(self).items() if name != "source"}


def mutants_of(area: str, module: str) -> list[Mutant]:
    """Every mutant of a module, one for each place and kind of change."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    source = (ROOT / module).read_text()
    lines, meaning = source.splitlines(), _meaning(source)
    found: dict[str, Mutant] = {}
    for name in sorted(operator_names()):
        if name.endswith(("VariableReplacer", "VariableInserter", "RemoveDecorator")):
            continue
        operator = get_operator(name)()
        for occurrence in itertools.count():
            changed = mutate_code(source.encode(), operator, occurrence)
            if changed is None:
                break
            try:
                same = _meaning(changed) == meaning
            except SyntaxError:
                continue
            if same:
                continue
            pairs = zip(lines, changed.splitlines(), strict=False)
            number, (before, after) = next((n, pair) for n, pair in enumerate(pairs, 1) if pair[0] != pair[1])
            kind = name.removeprefix("core/")
            found[changed] = Mutant(area, module, kind, number, before.strip(), after.strip(), changed)
    return list(found.values())


class _Bare(ast.NodeTransformer):
    """Takes annotations away."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(0)
        return self.generic_visit(node)


def _meaning(source: str) -> str:
    return ast.dump(_Bare().visit(ast.parse(source)))


def chosen(area: str, n: int) -> list[Mutant]:
    """N mutants of an area; of a line and kind of change at most one, because its variants are caught together."""
    chance = random.Random(area)
    every = [mutant for module in AREAS[area].modules for mutant in mutants_of(area, module)]
    chance.shuffle(every)
    apart = {(one.module, one.line, one.operator.partition("_")[0]): one for one in every}
    picked = list(apart.values())
    chance.shuffle(picked)
    print(f"{area}: {len(every)} mutants, {len(picked)} at places of their own", flush=True)
    return picked[:n]


def preload() -> None:
    """Import what takes seconds and does not change, once for all children."""
    for name in ("torch", "transformers", "pandas", "pyarrow.parquet", "matplotlib.pyplot", "hypothesis", "jaxtyping"):
        __import__(name)
    for name in ("beartype", "rich", "typer", "scipy.stats", "transformers.models.llama.modeling_llama", "pytest"):
        __import__(name)


def passes(tree: Path, tests: tuple[str, ...], within: float) -> str:
    """Run tests in a copy of the checkout: "passed", "failed", or "slow" after so many seconds."""
    child = os.fork()
    if not child:
        os.setsid()
        os.chdir(tree)
        silent = os.open(tree / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        code = 1
        try:
            import pytest

            sys.path.insert(0, str(tree))
            known = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of plugins that are imported already
            code = pytest.main(
                ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly", *known, *tests]
            )
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(code))
    ends = time.monotonic() + within
    while time.monotonic() < ends:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return "passed" if status == 0 else "failed"
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "slow"


def try_all(mutants: list[Mutant], results: "multiprocessing.Queue[tuple[Mutant, str, float]]") -> None:
    """Try mutants one after the other in a copy of the checkout."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "checkout"
        names = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
        )
        for name in names.stdout.splitlines():
            if (ROOT / name).is_file():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, tree / name)
        if (ROOT.parent / "shared").exists():
            (tree.parent / "shared").symlink_to(ROOT.parent / "shared")
        took: dict[str, float] = {}
        for mutant in mutants:
            tests = AREAS[mutant.area].tests
            if mutant.area not in took:
                began = time.monotonic()
                outcome = passes(tree, tests, 600)
                took[mutant.area] = time.monotonic() - began
                print(f"{mutant.area}: tests take {took[mutant.area]:.0f} s", flush=True)
                if outcome != "passed":
                    raise SystemExit(f"{mutant.area}: {outcome}\n{(tree / 'output.txt').read_text()[-3000:]}")
            (tree / mutant.module).write_text(mutant.source)
            began = time.monotonic()
            outcome = passes(tree, tests, 3 * took[mutant.area] + 20)
            (tree / mutant.module).write_text((ROOT / mutant.module).read_text())
            results.put((mutant, outcome, time.monotonic() - began))


def main() -> int:
    """Try mutants of every area and say which survived."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-area", type=int, default=50)
    parser.add_argument("--areas", default=",".join(AREAS))
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="file to write, as JSON")
    options = parser.parse_args()
    sys.dont_write_bytecode = True
    os.environ.update(PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1")
    mutants = [mutant for area in options.areas.split(",") for mutant in chosen(area, options.per_area)]
    preload()
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    workers = [
        fork.Process(target=try_all, args=(mutants[number :: options.workers], results))
        for number in range(options.workers)
    ]
    for worker in workers:
        worker.start()
    outcomes: list[tuple[Mutant, str]] = []
    while len(outcomes) < len(mutants):
        try:
            mutant, outcome, seconds = results.get(timeout=10)
        except Exception:
            if any(worker.exitcode for worker in workers):
                return 1
            continue
        outcomes.append((mutant, outcome))
        if outcome == "passed":
            print(f"survived ({seconds:.0f} s): {mutant.module}:{mutant.line} {mutant.operator}", flush=True)
            print(f"    {mutant.before}\n    {mutant.after}", flush=True)
    rows = {}
    for area in options.areas.split(","):
        counted = Counter(outcome for mutant, outcome in outcomes if mutant.area == area)
        rows[area] = {"mutants": counted.total(), "killed": counted.total() - counted["passed"]}
    for area, row in rows.items():
        print(f"{area}: {row['killed']} of {row['mutants']} killed")
    killed, total = (sum(row[name] for row in rows.values()) for name in ("killed", "mutants"))
    print(f"all: {killed} of {total} killed")
    if options.out:
        survivors = [mutant.shown for mutant, outcome in outcomes if outcome == "passed"]
        survivors.sort(key=lambda shown: (shown["module"], shown["line"]))
        options.out.write_text(json.dumps({"areas": rows, "survived": survivors}, indent=2) + "\n")
    return 0 if killed >= ENOUGH * total else 1


if __name__ == "__main__":
    sys.exit(main())
