"""`layerlens figure`: the paper's figures, and further figures of a run."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from layerlens.cli.each import each, opened, refuse_unknown, say_unfinished
from layerlens.cli.options import grouped
from layerlens.cli.printable import echo, note
from layerlens.errors import OptionError


@dataclass(frozen=True)
class Grid:
    """Options of the figures that show the tokens of one prompt: 7 to 12, and the grid of layers by tokens."""

    prompt_id: Annotated[
        str | None,
        typer.Option(
            help="Id of the prompt that figures 7 to 12 and grid show. [default: figure 7 shows the prompt with the "
            "most substitutions, figure 8 the next, and so on; grid shows the run's first]"
        ),
    ] = None
    rule: Annotated[
        str | None,
        typer.Option(
            help="Which tokens figures 7 to 12 frame: substitution (tokens that the decoding replaced), alignment "
            "(tokens that the two texts do not share) or place (tokens that differ at the same place). "
            "[default: substitution]"
        ),
    ] = None
    first: Annotated[
        int | None,
        typer.Option(
            help="First token that figure grid shows, counted from 1. [default: the first that was generated]"
        ),
    ] = None
    last: Annotated[
        int | None, typer.Option(help="Last token that figure grid shows. [default: as many as the width has room for]")
    ] = None
    colour: Annotated[
        str | None,
        typer.Option(
            help="What the colours of figure grid show: entropy, probability, rank or divergence. [default: entropy]"
        ),
    ] = None

    def given(self) -> dict[str, str | int]:
        """The options that were given."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@grouped
def figure(
    number: Annotated[
        str, typer.Argument(help="Number of a figure of the paper (1 to 12), a name such as onset or grid, or all.")
    ],
    out: Annotated[Path, typer.Option(help="Directory for the PNG, the PDF, and the csv with the numbers drawn.")],
    run: Annotated[Path | None, typer.Option(help="Run directory.")] = None,
    beside: Annotated[
        Path | None, typer.Option(help="Run of the same prompts, decoded from the last layer, for figures 7 to 12.")
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(help="Directory of `layerlens ablate` or `layerlens eval`, for figures 3 and explanation."),
    ] = None,
    half_steps: Annotated[
        bool, typer.Option("--half-steps", help="Show the steps between attention and MLP in figures 4 and 6.")
    ] = False,
    width: Annotated[
        str | None,
        typer.Option(
            help="Width of the figure in columns of a page: one (3.3 inches) or two (6.9 inches). "
            "[default: two for figures 1, 7 to 12 and grid; one for the others]"
        ),
    ] = None,
    *,
    grid: Grid,
) -> None:
    """Draw a figure from a run or an evaluation: PNG, PDF, and the numbers as csv."""
    import layerlens as ll

    refuse_unknown("figure", number, [str(one) for one in ll.plot.KNOWN])
    _refuse_without_effect(number, beside=beside, evaluation=evaluation, half_steps=half_steps, **grid.given())
    shown, other = opened(run), opened(beside)
    if evaluation is not None:
        say_unfinished(evaluation)
    everything = [] if run is None else list(ll.plot.DISTINCT)
    n_texts = 0 if shown is None else max(1, int((shown.prompts["n_generated_tokens"] > 0).sum()))
    if number == "all" and 0 < n_texts < len(ll.plot.GRIDS):
        everything = [one for one in everything if one not in ll.plot.GRIDS[n_texts:]]
        note(f"{run} has too few texts for the figures from {ll.plot.GRIDS[n_texts]} on")
    if number == "all" and run is not None:
        _say_left_out(evaluation)
    names = [] if shown is None else ll.plot.named_for(shown)
    answered = [] if evaluation is None else list(ll.plot.OF_EVALUATIONS)
    for path in each(
        "figure",
        number,
        [*map(str, everything), *names, *map(str, answered)],
        lambda one: ll.plot.draw(
            int(one) if one.isdecimal() else one,
            shown,
            out,
            beside=other,
            evaluation=evaluation,
            half_steps=half_steps,
            width=width,
            **(grid.given() if number != "all" else {}),
        ),
    ):
        echo(path)


def _refuse_without_effect(number: str, **given: object) -> None:
    """OptionError where an option was given that the figure does not use."""
    import layerlens as ll

    texts = tuple(map(str, ll.plot.GRIDS))
    readers = {"beside": texts, "evaluation": tuple(map(str, ll.plot.OF_EVALUATIONS)), "half_steps": ("4", "6")}
    of_one_figure = {"prompt_id": (*texts, "grid"), "rule": texts}
    for name, value in given.items():
        of = readers.get(name) or of_one_figure.get(name, ("grid",))
        is_read = number in of or (number == "all" and name in readers)
        if value in (None, False) or is_read:
            continue
        numbers = [one for one in ("7 to 12",) if set(texts) <= set(of)] + [one for one in of if one not in texts]
        what = f"is an option of figure{'' if len(of) == 1 else 's'} {' and '.join(numbers)}"
        raise OptionError.about(name, value, what, f"leave it out of figure {number}, or draw figure {of[0]}")


def _say_left_out(evaluation: Path | None) -> None:
    other = "figures 5 and 6 are figures 2 and 4 of another model: give the run of that model"
    lacking = "" if evaluation else "figure 3 shows scored answers: give --evaluation; "
    note(f"{lacking}{other}")
