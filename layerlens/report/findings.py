"""What a run found, as HTML: the numbers that matter most, then the tables they come from."""

from collections.abc import Sequence
from math import isinf
from typing import Any

import pandas as pd

from layerlens.analysis.agreement import earliest_agreement
from layerlens.analysis.decoding import by_entropy_band, by_relative_position, valley_statistics
from layerlens.analysis.drafts import dispensable
from layerlens.analysis.partition import partition
from layerlens.analysis.phases import phases
from layerlens.analysis.valleys import marks_shown, valleys
from layerlens.errors import RunError, spelled
from layerlens.records.reader import Records
from layerlens.records.schema import CONFIDENCE, VOCAB_CONFIDENCE
from layerlens.report.markup import Markup, element, join

Row = dict[Any, Any]


def findings(run: Records) -> tuple[Markup, Markup]:
    """The numbers that matter most, and the tables they come from, with 95 % intervals.

    If the run lacks what they need, one sentence says so and there are no tables.
    """
    if run.n_layers == 1:
        return note(
            "The model has a single layer, so there are no phases and no earlier layer to compare with."
        ), join()
    try:
        phase_table, partitioned, valley_table = phases(run), partition(run), valleys(run)
    except RunError as error:
        return note(f"No statistics: {error}."), join()
    try:
        steps, why_not = valley_statistics(run), ""
    except RunError as error:
        steps, why_not = None, f"No statistics of generated tokens: {error}."
    tables = [_phase_table(phase_table), _valley_table(valley_table), _partition_table(partitioned)]
    if run.has(CONFIDENCE.name):
        tables.append(_dispensable_table(run))
    return _highlights(phase_table, partitioned, valley_table, steps, _settled(run)), join(
        element("div", *tables, attributes={"class": "tables"}),
        note(why_not) if steps is None else _generated_tables(run, steps),
    )


def caveats(run: Records) -> list[str]:
    """Sentences that a reader of the numbers must know; none for a complete run of many prompts with finite states."""
    n_broken = int((run.prompts["finish_reason"] == "non_finite").sum())
    counted = len(run.prompts) - n_broken
    said = []
    if not run.is_complete:
        said.append(
            f"This run is not complete: {len(run.prompts):,} of {run.manifest['dataset']['rows']:,} prompts are in it; "
            f"repeat the trace with {spelled('resume', True)} and make the report again."
        )
    if run.words.empty:
        advice = (
            "trace it again with this version" if run.is_complete else f"continue it with {spelled('resume', True)}"
        )
        said.append(f"The run does not hold the texts of its token ids; {advice} and make the report again.")
    if n_broken:
        said.append(f"The statistics and figures leave out {count(n_broken, 'prompt')} with NaN or infinite states.")
    if counted == 1:
        said.append("The run has one prompt, so its means have no intervals: intervals come from resampling prompts.")
    elif 1 < counted < 6:
        said.append(f"With {counted} prompts the intervals are too narrow; trace at least six.")
    return said


def with_interval(row: Row, name: str, digits: str = ".2f") -> str:
    """A mean and its interval, "0.34 [0.33, 0.35]"; the mean alone if it has no interval, a dash without a mean."""
    if pd.isna(row[name]):
        return "–"
    values = [row[name], *(row[f"{name}{end}"] for end in ("_low", "_high"))]
    mean, low, high = (f"{value:{digits}}".replace("-", "−") for value in values)
    return mean if pd.isna(values[1]) else f"{mean} [{low}, {high}]"


def layers_of(row: Row, name: str = "layer") -> str:
    """A layer and its interval, "28 [27, 28]"; the layer alone if it has no interval, and "none" if there is no such
    layer."""
    if pd.isna(row[name]):
        return "none"
    bounds = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]}" if pd.isna(bounds[0]) else f"{row[name]} [{bounds[0]}, {bounds[1]}]"


def count(number: int, noun: str) -> str:
    """ "1 prompt", "1,165 positions"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def note(text: str) -> Markup:
    """A sentence that qualifies what stands around it."""
    return element("p", text, attributes={"class": "note"})


def _settled(run: Records) -> str:
    """The layer from which on half of the tokens or more keep the last layer's top token, with its interval."""
    return with_interval(_rows(earliest_agreement(run), reading="kept")[0], "median", ".0f")


def _highlights(
    phases: pd.DataFrame, partition: pd.DataFrame, valleys: pd.DataFrame, steps: pd.DataFrame | None, settled: str
) -> Markup:
    perturbed = _rows(partition, group="perturbed")[0]
    valley, onset = (_rows(valleys, group="perturbed", mark=mark)[0] for mark in ("V*", "V_onset"))
    lower = _rows(marks_shown(valleys), group="perturbed", mark="lowest")
    shown = [
        ("Perturbed tokens", with_interval(perturbed, "share", ".1%"), "the last layer makes them less sure"),
        ("Entropy added to them", with_interval(perturbed, "entropy_change"), "nats a token, by the last layer"),
    ]
    if steps is not None:
        substituted = with_interval(_rows(steps, statistic="substitution_rate")[0], "value", ".1%")
        shown.append(("Substituted tokens", substituted, "the valley layer ranks another token first"))
    shown += [
        (
            "Final rise begins at V*",
            layers_of(valley),
            "the layer from which the mean entropy of perturbed tokens rises to the end",
        ),
        *(("Lowest of all layers", layers_of(one), "the layer where this mean entropy is lowest") for one in lower),
        ("Descent begins at V_onset", layers_of(onset), "the layer from which this mean entropy falls"),
        ("Plateau, phase II", _span(_rows(phases, phase="II")[0]), "layers"),
        ("Half decided by layer", settled, "half of the tokens keep the last layer’s top token from here on"),
    ]
    return element("dl", *(_highlight(*one) for one in shown), attributes={"class": "highlights"})


def _highlight(name: str, value: str, meaning: str) -> Markup:
    mean, bracket, rest = value.partition(" [")
    figures = [element("strong", mean), *([" ", element("span", bracket.strip() + rest)] if bracket else [])]
    return element("div", element("dt", name), element("dd", *figures), element("dd", meaning))


def _phase_table(phases: pd.DataFrame) -> Markup:
    rows = [
        (row["phase"], _span(row), with_interval(row, "norm_ratio"), with_interval(row, "io_cosine"))
        for row in _rows(phases)
    ]
    table = _table("Phases of the layers", ("Phase", "Layers", "Norm ratio", "I/O cosine"), rows, _basis(phases))
    said = phases.attrs.get("note")
    return element("div", table, note(f"{said[0].upper()}{said[1:]}.")) if said else table


def _partition_table(partition: pd.DataFrame) -> Markup:
    columns = ("entropy_before", "entropy_last", "entropy_change", "entropy_valley")
    rows = [
        [row["group"], f"{row['n_tokens']:,}", with_interval(row, "share", ".1%"), *_means(row, columns)]
        for row in _rows(partition)
    ]
    head = ("Tokens", "n", "Share", "Entropy at L − 1", "at L", "Change", "at V* of perturbed")
    return _table("Entropy partition, nats", head, rows, _basis(partition))


def _generated_tables(run: Records, steps: pd.DataFrame) -> Markup:
    """Valleys and substitutions of the generated tokens: as a whole, by final entropy and by place in the text."""
    shown = [(name, _rows(steps, statistic=statistic)[0]) for statistic, name in _STATISTICS.items()]
    rows = [[name, with_interval(row, "value", _DIGITS[row["unit"]]), f"{row['n_tokens']:,}"] for name, row in shown]
    whole = _table("Valleys and substitutions", ("Generated tokens", "Value", "n"), rows, _basis(steps))
    rates = ("valley_rate", "substitution_rate")
    by_entropy = [
        [_band(row), *(with_interval(row, name, ".1%") for name in rates), f"{row['n_tokens']:,}"]
        for row in _rows(by_entropy_band(run))
    ]
    by_place = [
        [
            f"{row['position_from']:.0%}–{row['position_to']:.0%}",
            *(with_interval(row, name, ".1%") for name in rates),
            f"{row['n_tokens']:,}",
        ]
        for row in _rows(by_relative_position(run))
    ]
    basis = "of generated tokens, 95 % intervals" if steps.attrs["n_prompts"] > 1 else "of generated tokens"
    head = ("With a valley", "Substituted", "n")
    tables = [
        whole,
        _table("By the last layer’s entropy", ("Nats", *head), by_entropy, basis),
        _table("By place in the text", ("Part", *head), by_place, basis),
    ]
    return element(
        "details",
        element("summary", "Valleys and substitutions among generated tokens"),
        element("div", *tables, attributes={"class": "tables"}),
    )


def _band(row: Row) -> str:
    low, high = row["entropy_from"], row["entropy_to"]
    if isinf(high):
        return f"from {low:g}"
    return f"{low:g} to {high:g}" if low else f"under {high:g}"


_DIGITS = {"share": ".1%", "nats": ".2f", "layers": ".2f", "tokens": ",.0f"}
_STATISTICS = {
    "valley_rate": "with a valley",
    "substitution_rate": "substituted",
    "substitution_rate_of_valleys": "substituted, of those with a valley",
    "sure_rate_without_valley": "under 0.01 nats, of those without a valley",
    "entropy": "last layer’s entropy, nats",
    "entropy_at_substitutions": "the same, where substituted",
    "entropy_at_other_valleys": "the same, at other valleys",
    "entropy_without_valley": "the same, without a valley",
    "entropy_drop_mean_of_ratios": "entropy the valley saves where the first choice stays",
    "walk_depth": "layers walked back",
    "walk_depth_of_valleys": "layers walked back to a valley",
    "substitution_rate_sd": "share substituted, sd over texts",
}


def _dispensable_table(run: Records) -> Markup:
    """How far measures of a layer agree about which layers do least."""
    try:
        agreement = dispensable(run)
    except RunError as error:
        return note(f"No comparison of what layers a draft can do without: {error}.")
    rows = [
        [
            f"{_MEASURES[row['measure']]} and {_MEASURES[row['other']]}",
            with_interval(row, "rho"),
            f"{row['shared']} of {row['n_lowest']}",
        ]
        for row in _rows(agreement)
    ]
    head = ("Measures", "Rank correlation over layers", "Same among the lowest quarter")
    basis = f"{count(agreement.attrs['n_prompts'], 'prompt')}, layers 2 to {run.n_layers - 1}"
    return _table("Which layers do least: how far measures agree", head, rows, basis)


_MEASURES = {
    "norm_ratio": "norm ratio",
    "one_minus_cosine": "1 − I/O cosine",
    "entropy_change": "entropy change",
    CONFIDENCE.name: "confidence",
    VOCAB_CONFIDENCE.name: "confidence over the vocabulary",
}


def _means(row: Row, names: Sequence[str]) -> list[str]:
    return [with_interval(row, name) for name in names]


def _valley_table(valleys: pd.DataFrame) -> Markup:
    several = valleys.attrs["n_prompts"] > 1
    rows = [
        (
            row["group"],
            row["mark"],
            layers_of(row),
            f"{row['share']:.0%}" if several else "–",
            with_interval(row, "entropy"),
        )
        for row in _rows(valleys)
    ]
    head = ("Tokens", "Mark", "Layer", "Share of resamples", "Entropy there")
    return _table("Marks of the mean entropy curves, nats", head, rows, _basis(valleys))


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], basis: str) -> Markup:
    """A table whose first column names its rows. `basis` says which tokens and prompts the numbers rest on."""
    titles = element("tr", *(element("th", title, attributes={"scope": "col"}) for title in head))
    body = [
        element("tr", element("th", row[0], attributes={"scope": "row"}), *(element("td", cell) for cell in row[1:]))
        for row in rows
    ]
    described = element("caption", caption, " ", element("small", basis))
    table = element("table", described, element("thead", titles), element("tbody", *body))
    return element(
        "div", table, attributes={"class": "scroll", "tabindex": "0", "role": "group", "aria-label": caption}
    )


def _basis(table: pd.DataFrame) -> str:
    n_prompts = table.attrs["n_prompts"]
    resampled = "95 % intervals by resampling prompts" if n_prompts > 1 else "no intervals"
    counted = max(int(row["n_tokens"]) for row in _rows(table))
    return f"{count(counted, 'token')} of {count(n_prompts, 'prompt')}, {resampled}"


def _span(row: Row) -> str:
    if pd.isna(row["first"]):
        return "none"
    return f"{row['first']}" if row["first"] == row["last"] else f"{row['first']}–{row['last']}"


def _rows(table: pd.DataFrame, **wanted: str) -> list[Row]:
    chosen = table
    for column, value in wanted.items():
        chosen = chosen[chosen[column] == value]
    return chosen.to_dict("records")
