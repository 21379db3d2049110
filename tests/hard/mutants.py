"""Mutants: small mistakes planted into the modules that numbers depend on, and which of them the tests catch.

    python tests/hard/mutants.py [--per-area N] [--areas lens,scan] [--out FILE] [--workers 2]

Each mutant is one change that cosmic-ray makes to one module (another operator, a number that is off by one, a
condition turned round, a loop that does nothing). The module's own tests run on it in a process of their own, in a
copy of the checkout. A mutant counts as killed where a test fails, or where the tests take much longer than without it.

Chosen by a seed: N mutants of each area, in proportion to the size of its modules. Mutants that change nothing but
annotations are left out. Exits 1 where less than 85 % of an area are killed. The file equivalent.json beside this one
says of survivors why no test can tell them from the module.
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
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENOUGH = 0.85


@dataclass(frozen=True)
class Area:
    """Modules and the tests that are theirs."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


def _within(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}.py" for name in names)


def _of(file: str, *names: str) -> tuple[str, ...]:
    """Some tests of a file whose others take long."""
    return tuple(f"{file}::test_{name}" for name in names)


def _but(file: str, *names: str) -> tuple[str, ...]:
    """A file without tests that take long."""
    return (file, *(f"--deselect={file}::test_{name}" for name in names))


AREAS = {
    "lens": Area(
        _within(
            "layerlens/lens", "criterion", "divergence", "head", "ranking", "reading", "sums", "tiled", "transport"
        ),
        (
            *_within("tests/lens", "test_criterion", "test_transport", "test_head"),
            *_but("tests/lens/test_reading.py", "the_largest_temporary_does_not_grow_with_the_vocabulary"),
            *_but("tests/lens/test_divergence.py", "the_largest_temporary_does_not_grow_with_the_vocabulary"),
            *_but("tests/lens/test_ranking.py", "no_temporary_grows_with_the_vocabulary"),
        ),
    ),
    "scan": Area(
        (*_within("layerlens/decode", "scan", "criteria"), "layerlens/formulas.py"),
        (
            *("tests/test_formulas.py", "tests/decode/test_criteria.py", "tests/decode/test_scan.py"),
            *_of(
                "tests/decode/test_fused_scan.py",
                "rows_that_do_not_walk_are_left_out_of_the_graph",
                "a_state_that_is_not_a_number_ends_its_walk_alone",
            ),
        ),
    ),
    "records": Area(
        _within("layerlens/records", "files", "merge", "reader", "shape", "store", "tidy", "disagreement"),
        (
            *_within("tests/records", "test_shape", "test_merge", "test_tidy", "test_damaged", "test_disagreement"),
            *_but(
                "tests/records/test_store.py",
                *("kill_9_at_ten_moments_then_resume_gives_the_rows_of_an_uninterrupted_run",),
                *("ctrl_c_keeps_what_is_complete", "a_full_disk_is_one_sentence_and_what_is_complete_stays"),
                *("resume_with_other_options_is_refused_with_what_it_was_begun_with",),
            ),
        ),
    ),
    "statistics": Area(
        _within("layerlens/analysis", "agreement", "paired", "pairing", "partition", "power", "shares", "uncertainty"),
        (
            *_within("tests/analysis", "test_uncertainty", "test_paired", "test_pairing", "test_partition"),
            *_within("tests/analysis", "test_agreement", "test_evaluation"),
            *_but(
                "tests/analysis/test_shares.py",
                *("a_difference_of_answers_is_covered", "a_difference_of_200_answers_is_covered"),
                *("a_difference_of_8_to_40_answers_is_covered", "shares_of_two_to_five_prompts_are_covered"),
                *("rare_tokens_are_covered_where_resampling_alone_fails", "a_difference_of_rare_tokens_is_covered"),
            ),
        ),
    ),
    "drafts": Area(
        _within("layerlens/decode/speculative", "acceptance", "loop"),
        (
            *_of(
                "tests/decode/speculative/test_drafter.py",
                *("widths_of_a_tree", "rounds_are_those_made_by_hand", "rounds_of_a_batch_are_means_over_its_texts"),
            ),
            *_of(
                "tests/decode/speculative/test_sampling.py",
                *("tokens_of_a_place_are_drawn_one_after_the_other", "a_seed_means_the_same_tokens"),
                "a_choice_is_distributed_as_the_whole_model_draws[unlike sizes-1]",
                "a_choice_is_distributed_as_the_whole_model_draws[tokens that are only drafted-3]",
                "a_choice_is_distributed_as_the_whole_model_draws[nothing in common-5]",
            ),
            *_of(
                "tests/decode/speculative/test_lossless.py",
                *("options_of_the_generation", "a_draft_whose_token_is_poison_is_thrown_away", "drafts_of_any_length"),
                *("strategies_that_verify[llama-valley at times-True]", "texts_that_fill_the_context[gpt2]"),
                *("strategies_that_verify[gemma3_text-dola-False]", "what_generate_gives[2-valley]"),
                "a_search_is_told_the_tokens_that_were_read_and_what_was_chosen_after_them",
                "tokens_that_are_emitted_and_cannot_be_read[True]",
            ),
        ),
    ),
    "scorers": Area(
        _within("layerlens/evaluation/scoring", "numbers", "stated", "words"),
        (
            *_within("tests/evaluation/scoring", "test_numbers", "test_stated"),
            *_but("tests/evaluation/scoring/test_words.py", "a_model_that_repeats_itself_is_scored_at_once"),
        ),
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


@dataclass(frozen=True)
class Place:
    """Where cosmic-ray can make one kind of change."""

    module: str
    operator: str
    occurrence: int
    line: int

    @property
    def kind(self) -> tuple[str, int, str]:
        """Of variants of one kind on one line one is tried, because they are caught together."""
        return self.module, self.line, self.operator.partition("_")[0]


def places_of(module: str) -> list[Place]:
    """Every place of a module and every kind of change that can be made there."""
    from cosmic_ray.ast import Visitor, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    tree = get_ast((ROOT / module).read_text())
    found: list[Place] = []
    for name in sorted(operator_names()):
        if name.endswith(("VariableReplacer", "VariableInserter", "RemoveDecorator")):
            continue
        operator, lines = get_operator(name)(), []

        class Looking(Visitor):
            def visit(self, node: object) -> object:
                lines.extend(begin[0] for begin, _ in operator.mutation_positions(node))  # noqa: B023
                return node

        Looking().walk(tree)
        found += [Place(module, name, occurrence, line) for occurrence, line in enumerate(lines)]
    return found


def mutant_at(area: str, place: Place) -> Mutant | None:
    """The mutant; None where the change is none, or no Python."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = (ROOT / place.module).read_text()
    # not bytes: a docstring that has the word "decoding" and a colon would be taken for a declared encoding
    changed = mutate_code(source, get_operator(place.operator)(), place.occurrence)
    try:
        if changed is None or _meaning(changed) == _meaning(source):
            return None
    except SyntaxError:
        return None
    pairs = zip(source.splitlines(), changed.splitlines(), strict=False)
    number, (before, after) = next((n, pair) for n, pair in enumerate(pairs, 1) if pair[0] != pair[1])
    kind = place.operator.removeprefix("core/")
    return Mutant(area, place.module, kind, number, before.strip(), after.strip(), changed)


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
    """N mutants of an area."""
    chance = random.Random(area)
    groups: dict[tuple[str, int, str], list[Place]] = {}
    for place in itertools.chain.from_iterable(map(places_of, AREAS[area].modules)):
        groups.setdefault(place.kind, []).append(place)
    picked: list[Mutant] = []
    for group in chance.sample(list(groups.values()), len(groups)):
        variants = chance.sample(group, len(group))
        mutant = next(filter(None, (mutant_at(area, place) for place in variants)), None)
        picked += [mutant] if mutant else []
        if len(picked) == n:
            break
    print(f"{area}: {len(picked)} mutants, of {len(groups)} places", flush=True)
    return picked


def preload() -> None:
    """Import what takes seconds and does not change, once for all children."""
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # as tests/conftest.py; read when triton is imported
    for name in ("transformers", "pandas", "pyarrow.parquet", "matplotlib.pyplot", "hypothesis", "jaxtyping"):
        __import__(name)
    for name in ("beartype", "rich", "typer", "scipy.stats", "transformers.models.llama.modeling_llama", "pytest"):
        __import__(name)


class _Quickest:
    """A plugin of pytest: the quick files first, and of each the quick tests, by what they took without a mutant."""

    def __init__(self, took: Path) -> None:
        self._took = took
        self._known: dict[str, float] = json.loads(took.read_text()) if took.exists() else {}
        self._found: dict[str, float] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        files: dict[Path, float] = defaultdict(float)
        for item in items:
            files[item.path] += self._known.get(item.nodeid, 0.0)
        items.sort(key=lambda item: (files[item.path], item.path, self._known.get(item.nodeid, 0.0)))

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._found[report.nodeid] = self._found.get(report.nodeid, 0.0) + report.duration

    def pytest_sessionfinish(self) -> None:
        if not self._known:
            self._took.write_text(json.dumps(self._found))


def _plain_hypothesis() -> None:
    from hypothesis import HealthCheck, Phase, settings

    # a failure is enough, however large its example; a mutant that is killed once is killed again; a busy machine is
    # no mistake
    settings.register_profile(
        "mutants",
        phases=(Phase.explicit, Phase.generate),
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    settings.load_profile("mutants")


def passes(tree: Path, tests: tuple[str, ...], within: float, took: Path) -> str:
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
            _plain_hypothesis()
            sys.path.insert(0, str(tree))
            known = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of plugins that are imported already
            code = pytest.main(
                ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly", *known, *tests],
                plugins=[_Quickest(took)],
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
                outcome = passes(tree, tests, 600, tree / f"{mutant.area}.json")
                took[mutant.area] = time.monotonic() - began
                print(f"{mutant.area}: tests take {took[mutant.area]:.0f} s", flush=True)
                if outcome != "passed":
                    raise SystemExit(f"{mutant.area}: {outcome}\n{(tree / 'output.txt').read_text()[-3000:]}")
            _write(tree / mutant.module, mutant.source)
            began = time.monotonic()
            outcome = passes(tree, tests, 3 * took[mutant.area] + 20, tree / f"{mutant.area}.json")
            _write(tree / mutant.module, (ROOT / mutant.module).read_text())
            results.put((mutant, outcome, time.monotonic() - began))


def _write(module: Path, source: str) -> None:
    """Write a module anew, without what was compiled of it: Python tells versions apart by seconds and lengths."""
    module.write_text(source)
    for compiled in module.parent.glob(f"__pycache__/{module.stem}.*"):
        compiled.unlink()


def reasons() -> dict[tuple[str, str, str], str]:
    """Why no test can tell some mutants from the module, by module, line before and line after."""
    known = json.loads(Path(__file__).with_name("equivalent.json").read_text())
    return {(one["module"], one["before"], one["after"]): one["why"] for one in known}


def counted(outcomes: list[tuple[Mutant, str]]) -> dict[str, dict[str, int]]:
    """Of each area how many mutants were tried, and how many of them were killed."""
    rows: dict[str, dict[str, int]] = {}
    for mutant, outcome in outcomes:
        row = rows.setdefault(mutant.area, {"mutants": 0, "killed": 0})
        row["mutants"] += 1
        row["killed"] += outcome != "passed"
    return rows


def write(
    out: Path,
    rows: dict[str, dict[str, int]],
    outcomes: list[tuple[Mutant, str]],
    whys: dict[tuple[str, str, str], str],
) -> None:
    """Write the counts, and which mutants survived."""
    survivors = [
        mutant.shown | {"why": whys.get((mutant.module, mutant.before, mutant.after))}
        for mutant, outcome in outcomes
        if outcome == "passed"
    ]
    survivors.sort(key=lambda shown: (shown["module"], shown["line"]))
    out.write_text(json.dumps({"areas": rows, "survived": survivors}, indent=2) + "\n")


def main() -> int:
    """Try mutants of every area and say which survived."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-area", type=int, default=50)
    parser.add_argument("--areas", default=",".join(AREAS))
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="file to write, as JSON")
    options = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1")
    whys = reasons()
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
    rows = counted(outcomes)
    while len(outcomes) < len(mutants):
        try:
            mutant, outcome, seconds = results.get(timeout=10)
        except Exception:
            if any(worker.exitcode for worker in workers):
                return 1
            continue
        outcomes.append((mutant, outcome))
        said = "survived" if outcome == "passed" else "killed"
        print(f"{said} ({seconds:.0f} s): {mutant.module}:{mutant.line} {mutant.operator}", flush=True)
        if outcome == "passed":
            why = whys.get((mutant.module, mutant.before, mutant.after), "not explained")
            print(f"    {mutant.before}\n    {mutant.after}\n    {why}", flush=True)
        rows = counted(outcomes)
        if options.out:  # each time, because a long run may be cut off
            write(options.out, rows, outcomes, whys)
    for area, row in rows.items():
        print(f"{area}: {row['killed']} of {row['mutants']} killed")
    return 0 if all(row["killed"] >= ENOUGH * row["mutants"] for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
