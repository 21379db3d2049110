"""A run as one HTML file that needs nothing else: no network, no other file, no library.

The texts of a run are untrusted. They reach the page in two ways only: through `markup.escaped`, or as data that the
explorer's script puts into text nodes. The page forbids itself everything else by its Content-Security-Policy: only
the script and the style of this package run, known by their hashes, and nothing is loaded.
"""

import base64
import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from layerlens import plots
from layerlens.errors import OptionError, RunError
from layerlens.paths import expanded
from layerlens.plots.style import look
from layerlens.records.files import published
from layerlens.records.places import refuse_inside, refuse_no_folder, refuse_other_suffix
from layerlens.records.reader import Records
from layerlens.report.beside import pack_beside
from layerlens.report.facts import facts, heading, summary
from layerlens.report.findings import caveats, findings, note
from layerlens.report.markup import Markup, element, escaped, join
from layerlens.report.packing import pack

_SCRIPTS = (
    "data",
    "text",
    "colours",
    "tokens",
    "grid",
    "plot",
    "detail",
    "search",
    "choosing",
    "prompts",
    "link",
    "start",
)


def write_report(
    run: Records,
    path: str | os.PathLike[str],
    prompt_ids: Sequence[str] | None = None,
    *,
    beside: Records | None = None,
) -> Path:
    """Write an HTML file about a run: findings, the token explorer, statistics, two figures, and what was run.

    Args:
        run: what was traced; complete or not.
        path: the file to write, .html or .htm, in a folder that exists. A page of that name is replaced. In the
            directory of a run, only report.html can be written.
        prompt_ids: the prompts that the explorer holds, in this order; by default all of them, as far as they fit.
        beside: another run of the same prompts, by another strategy, lens or model. The explorer holds the prompts that
            both have, with their texts beside each other.

    Raises:
        OptionError: the file cannot be written or would replace another kind of file, or the run traced no prompt of
            such an id.
        RunError: a run holds no complete prompt, or the two runs share no prompt.
    """
    out = expanded(path)
    _refuse_no_page(out, run.path)
    page = _report_html(run, prompt_ids, beside)
    try:
        with published(out.resolve()) as handle:
            handle.write(page.encode())
    except OSError as error:
        reason = error.strerror or str(error)
        problem = f"the report cannot be written to {out} ({reason})"
        raise OptionError(problem, "name another file", option="out", given=out) from error
    return out


def _refuse_no_page(out: Path, run: Path) -> None:
    """OptionError where a page cannot be written there, or where it would replace anything but a page."""
    refuse_other_suffix(out, (".html", ".htm"))
    refuse_no_folder(out)
    if out.absolute() != (run / "report.html").absolute():
        refuse_inside(out, run)
    if os.path.exists(out) and not _is_page(out):  # noqa: PTH110 - False also for a name that is too long
        raise OptionError.about("out", out, "exists and is not an HTML file", "give another file")


def _is_page(path: Path) -> bool:
    """Whether a file begins as a page of HTML does."""
    with path.open("rb") as handle:
        beginning = handle.read(1000).lower()
    return b"<!doctype html" in beginning or b"<html" in beginning


def explorer_html(run: Records, prompt_ids: Sequence[str] | None = None, *, beside: Records | None = None) -> str:
    """The token explorer alone, as a whole HTML page. It works in the srcdoc of an iframe.

    Args:
        run: what was traced; complete or not.
        prompt_ids: the prompts to hold, in this order; by default all of them, as far as they fit.
        beside: another run of the same prompts, to be explored beside it; see `write_report`.

    Raises:
        OptionError: the run traced no prompt of such an id.
        RunError: a run holds no complete prompt, or the two runs share no prompt.
    """
    return _document(run, _data(run, prompt_ids, beside), _explorer(), alone=True)


def _report_html(run: Records, prompt_ids: Sequence[str] | None, beside: Records | None) -> str:
    data = _data(run, prompt_ids, beside)
    most, tables = findings(run)
    second = (
        []
        if beside is None
        else [_section("beside", "What was run beside it", element("p", summary(beside)), facts(beside))]
    )
    return _document(
        run,
        data,
        _section("findings", "What it found", join(*map(note, caveats(run))), most),
        _explorer(),
        *([_section("statistics", "Statistics", tables)] if tables else []),
        _section("figures", "Layer by layer", element("div", *_figures(run), attributes={"class": "figures"})),
        _section("run", "What was run", facts(run)),
        *second,
    )


def _document(run: Records, data: Markup, *sections: Markup, alone: bool = False) -> str:
    style, script = _fragment("report.css"), _script()
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    theme = element("button", "Dark mode", attributes={"id": "theme", "type": "button", "aria-pressed": "false"})
    head = element("header", element("div", heading(run)), theme)
    title = f"{run.manifest['model']['source']} – layerlens"
    return (
        f'<!DOCTYPE html>\n<html lang="en"{" class=alone" if alone else ""}>\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{element('title', title)}\n{element('style', style)}\n</head>\n<body>\n"
        f"{head}\n{element('main', *sections)}\n{data}\n{element('script', script)}\n</body>\n</html>\n"
    )


def _explorer() -> Markup:
    return _section("explorer", "Token explorer", _fragment("explorer.html"))


def _section(name: str, title: str, *content: Markup) -> Markup:
    titled = element("h2", title, attributes={"id": f"{name}-title"})
    return element("section", titled, *content, attributes={"id": name, "aria-labelledby": f"{name}-title"})


def _fragment(name: str) -> Markup:
    return Markup(files(__package__).joinpath(name).read_text(encoding="utf-8").strip())


def _script() -> Markup:
    parts = "\n\n".join(_fragment(f"script/{name}.js") for name in _SCRIPTS)
    return Markup(f'(() => {{\n"use strict";\n\n{parts}\n}})();')


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode("ascii")


def _data(run: Records, prompt_ids: Sequence[str] | None, beside: Records | None) -> Markup:
    """The explorer's data as JSON that no HTML parser can take for markup."""
    packed = pack(run, prompt_ids) if beside is None else pack_beside(run, beside, prompt_ids)
    text = json.dumps(packed, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return element("script", Markup(text), attributes={"type": "application/json", "id": "explorer-data"})


def _figures(run: Records) -> list[Markup]:
    return [
        _figure(
            run, 2, plots.figure2, "How strongly each layer writes into the residual stream (a), and turns it (b)."
        ),
        _figure(
            run,
            4,
            plots.figure4,
            "Entropy by layer, of tokens that the last layer makes less sure (a), and of the others (b).",
        ),
    ]


def _figure(run: Records, number: int, draw: Callable[[Records], tuple[Figure, pd.DataFrame]], caption: str) -> Markup:
    try:
        figure, _ = draw(run)
    except RunError as error:
        return note(f"No Figure {number}: {error}.")
    svg = io.BytesIO()
    with look(), mpl.rc_context({"svg.hashsalt": "layerlens"}):  # the same run gives the same bytes
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    source = "data:image/svg+xml;base64," + base64.b64encode(svg.getvalue()).decode("ascii")
    # an element without an end tag, which `element` does not make
    image = Markup(f'<img src="{source}" alt="{escaped(caption)}">')
    return element("figure", image, element("figcaption", f"Figure {number}. {caption}"))
