"""What `layerlens bench speculative` runs, prints and writes."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerlens.cli.printable import echo, note
from layerlens.errors import LayerlensError, ModelError, OptionError, spelled
from layerlens.paths import expanded

if TYPE_CHECKING:
    from layerlens.datasets import Dataset
    from layerlens.decode.options import GenerateOptions
    from layerlens.decode.speculative.drafter import Drafter
    from layerlens.decode.speculative.policy import SkipPolicy
    from layerlens.decode.strategies import Strategy
    from layerlens.models import Model

_REPORT = "report.json"

Arguments = dict[str, dict[str, Any]]
"""The options of each policy, by name."""


def asked_policies(names: str, run: Path | None, skip_set: Path | None, given: Mapping[str, Any]) -> Arguments:
    """The policies that were asked for, each with its options; without torch.

    Raises:
        OptionError: a name is unknown or given twice, or a policy lacks what it needs.
    """
    from layerlens.decode.speculative.registry import refuse_unknown_policy

    asked = [name.strip() for name in names.split(",") if name.strip()]
    if not asked:
        raise OptionError.about("policies", names, "names no policy", "give such as conflayers,swift")
    needed = {"traced": ("run", run), "fixed": ("skip_set", skip_set)}
    found: Arguments = {}
    for name in asked:
        refuse_unknown_policy(name, "policies")
        if name in found:
            raise OptionError.about("policies", names, f"names {name} twice", "name it once")
        found[name] = dict(given)
        if name in needed:
            option, path = needed[name]
            if path is None:
                what = f"names {name}, which needs {spelled(option)}"
                raise OptionError.about("policies", names, what, "give it too")
            found[name]["run" if name == "traced" else "skipped"] = str(path)
    for name, (option, path) in needed.items():
        if path is not None and name not in found:
            what = f"has no effect without the policy {name}"
            raise OptionError.about(option, path, what, f"name it in {spelled('policies')}, or leave this out")
    return found


def answered(
    model: "Model",
    asked: Arguments,
    prompts: "Dataset",
    options: "GenerateOptions",
    strategy: "Strategy",
    early_exit: int | None,
    *,
    blocks: bool,
    out: Path | None,
) -> None:
    """Measure, print, and write what was asked for."""
    from layerlens.bench.speculative import greedy_outputs, measure_blocks, measure_speculative
    from layerlens.decode.generation_config import with_generation_config
    from layerlens.decode.options import settle_chat_template
    from layerlens.decode.prompts import tokenize
    from layerlens.tracing.progress import Progress

    policies, left_out = _fitting(model, asked)
    settled = settle_chat_template(options, bool(getattr(model.tokenizer, "chat_template", None)))
    ids = [list(prompt.token_ids) for prompt in tokenize(model, prompts.prompts, settled)]
    settled = with_generation_config(settled, model)
    exits = model.n_layers // 2 if early_exit is None else early_exit
    if exits >= model.n_layers:
        advice = f"give {spelled('early_exit', 0)} to {spelled('early_exit', model.n_layers - 1)}"
        what = f"leaves nothing out of a model of {model.n_layers} layers"
        raise OptionError.about("early_exit", exits, what, advice)
    with Progress(shown=True) as bar:
        bar.begin("answering", len(ids), "prompts")
        report, drafters = measure_speculative(
            model, policies, ids, settled, strategy, early_exit=exits or None, on_prompt=lambda: bar.advance(1)
        )
        for name, reason in report["left_out"].items():
            note(f"{name} is left out: {reason}")
        report["left_out"] |= left_out
        by_block = None
        if blocks:
            bar.begin("without one block", 2 * len(ids), "passes")
            outputs = greedy_outputs(model, ids, settled, lambda: bar.advance(1))
            by_block, correlations = measure_blocks(model, ids, outputs, lambda: bar.advance(1))
            report["blocks"] = by_block.to_dict("records")
            report["rank_correlations"] = {name: one._asdict() for name, one in correlations.items()}
    print_report(report)
    if out is not None:
        for path in _written(report, drafters, model, out):
            echo(f"written to {path}")


def _fitting(model: "Model", asked: Arguments) -> "tuple[dict[str, SkipPolicy], dict[str, str]]":
    """The policies that the model can follow, and why it cannot follow the others."""
    from layerlens.decode.speculative.registry import named_skip_policy

    taken: set[str] = set()
    policies: dict[str, SkipPolicy] = {}
    left_out: dict[str, str] = {}
    for name, given in asked.items():
        own = {option: value for option, value in given.items() if option in _options_of(name)}
        taken |= own.keys()
        policy = named_skip_policy(name, **own)
        try:
            policy.search(model)
        except LayerlensError as error:
            if not isinstance(error, ModelError) and error.option != "model":
                raise
            left_out[name] = str(error)
        else:
            policies[name] = policy
    given_names = {option for given in asked.values() for option in given}
    if unknown := sorted(given_names - taken):
        what = "is an option of none of these policies"
        raise OptionError.about("draft_option", unknown[0], what, "leave it out")
    for name, reason in left_out.items():
        note(f"{name} is left out: {reason}")
    if not policies:
        problem = f"no policy of {', '.join(asked)} can work with {model.source}"
        raise OptionError(problem, "give another model", option="policies", given=", ".join(asked))
    return policies, left_out


def _options_of(name: str) -> list[str]:
    import inspect

    from layerlens.decode.speculative.registry import policy_class

    return list(inspect.signature(policy_class(name)).parameters)


def print_report(report: Mapping[str, Any]) -> None:
    """Print the table, what differs from plain decoding, and what was measured block by block."""
    from rich.table import Table

    from layerlens.cli.grids import print_table

    strategy = report["strategy"]["name"]
    echo(
        f"\n{report['model']} ({report['dtype']}, {report['n_layers']} layers), {strategy}: {report['prompts']} "
        f"prompts, at most {report['max_new_tokens']} tokens each"
    )
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("way", no_wrap=True)
    headings = ("tokens/s", "speed-up [95 %]", "after search", "accepted", "of drafted", "skipped", "sets", "pays from")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report["table"]:
        cells = [f"{row['tokens_per_second']:.2f}", _interval(row, "speed_up")]
        if "rounds" in row:
            over = row["prompts_after_search"]
            drafted = row["rounds"] > 0
            cells += [
                _interval(row, "speed_up_after_search") if over else "search goes on",
                f"{row['accepted']:.2f} a round" if drafted else "none drafted",
                f"{row['acceptance']:.2f}" if drafted else "-",
                f"{row['skipped_share']:.0%}",
                f"{row['proposals']}",
                "never" if row["break_even"] is None else f"prompt {row['break_even']}",
            ]
        table.add_row(row["way"].replace("_", " "), *cells)
    print_table(table)
    echo(
        "Speed-ups are ratios of total times, with the search, over plain decoding; intervals are over prompts. The "
        "two ways of transformers are compared with its own plain loop."
    )
    n = len(report["differences"])
    margins = [one["margin"] for one in report["differences"] if one["margin"] is not None]
    largest = f"; the two logits differed by at most {max(map(abs, margins)):.1e} there" if margins else ""
    echo(f"Texts that differ from plain decoding: {n}{largest}")
    for name, one in report.get("rank_correlations", {}).items():
        words = {"one_minus_cosine": "1 - I/O cosine", "norm_ratio": "norm ratio"}[name]
        echo(
            f"Acceptance without one block and its {words}: rank correlation {one['rho']:.2f} "
            f"[{one['low']:.2f}, {one['high']:.2f}] over {one['n_blocks']} blocks, {one['n_prompts']} prompts"
        )


def _interval(row: Mapping[str, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if row[name] is None or math.isnan(row[name]):
        return "-"
    return f"{row[name]:.2f} [{low:.2f}, {high:.2f}]"


def refuse_occupied(out: Path) -> None:
    """Make the folder for the results; OptionError where that fails, or where it holds earlier ones.

    This is checked before anything is measured.
    """
    from layerlens.records.places import refuse_inside, refuse_unwritable

    refuse_inside(out / _REPORT, option="out")
    refuse_unwritable(out)
    if (expanded(out) / _REPORT).exists():
        raise OptionError.about("out", out, f"holds the {_REPORT} of earlier measurements", "give another folder")


def _written(report: Mapping[str, Any], drafters: "Mapping[str, Drafter]", model: "Model", out: Path) -> list[Path]:
    """The report, the tables, the figures and what each search found in a folder."""
    import pandas as pd

    from layerlens.plots.save import save
    from layerlens.plots.speculative import figures
    from layerlens.sheets import write_csv

    folder = expanded(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / _REPORT
        path.write_text(json.dumps(_without_nan(report), indent=1, default=str) + "\n", encoding="utf-8")
        table = folder / "speculative.csv"
        write_csv(pd.DataFrame(report["table"]), table)
    except OSError as error:
        what = f"could not be written ({error.strerror})"
        raise OptionError.about("out", out, what, "the measurements are printed above: give another folder") from error
    paths = [path, table]
    for name, drafter in drafters.items():
        if drafter.skips:
            paths.append(folder / f"skipset_{name}.json")
            drafter.skips.save(paths[-1], model)
    pictures = {
        name: picture for name, one in drafters.items() if (picture := getattr(one.search, "picture", None)) is not None
    }
    for stem, figure, drawn in figures(report, pictures):
        paths += save(figure, drawn, folder, stem)
    return paths


def _without_nan(value: Any) -> Any:
    """None in place of what JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _without_nan(one) for name, one in value.items()}
    return [_without_nan(one) for one in value] if isinstance(value, list | tuple) else value
