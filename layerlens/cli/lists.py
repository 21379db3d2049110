"""`layerlens models` and `layerlens datasets`: what can be used."""

import json as json_format
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from layerlens.cli.printable import echo
from layerlens.errors import OptionError, spelled

if TYPE_CHECKING:
    from layerlens.support.coverage import Coverage


def models(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="With --check: families to try, such as qwen3. [default: all]"),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Try the families of the installed transformers on tiny random models, about a second each."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="With --check: print a JSON list.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="With --check: print a Markdown table.")] = False,
) -> None:
    """List the built-in models and the families of text decoders, or try every family that transformers has.

    --check traces each family, decodes from its valley, and tries padding. The exit status is 1 if a family fails.
    """
    if not check:
        _refuse_without_check(names or [], json=json, markdown=markdown)
        return _list_families()
    if json and markdown:
        both = f"{spelled('json', True)} and {spelled('markdown', True)}"
        raise OptionError(f"{both} are two ways to print the same", "give one of them", option="json", given=True)
    from layerlens.support.families import refuse_unknown

    for name in names or []:
        refuse_unknown(name)

    from layerlens.support.coverage import as_table, check_families

    shown = _as_json if json else as_table if markdown else _as_lines
    coverages: list[Coverage] = []
    for line in shown(_kept(check_families(names or []), coverages)):
        echo(line)
    if any(one.verdict == "fails" for one in coverages):
        raise typer.Exit(1)


def _refuse_without_check(names: list[str], *, json: bool, markdown: bool) -> None:
    given = [*names, *(spelled(name, True) for name, on in (("json", json), ("markdown", markdown)) if on)]
    if given:
        advice = f"add {spelled('check', True)}, or give `layerlens models` alone to list the families"
        raise OptionError(f"{given[0]} has an effect only when families are tried", advice, option="check", given=False)


def _list_families() -> None:
    from layerlens.models.families import FAMILIES
    from layerlens.models.locate import BUILT_IN, INSTALL, is_installed

    echo("Built-in models (give the name as --model):\n")
    for name in BUILT_IN:
        echo(f"  {name:<22} {'installed' if is_installed(name) else f'get it with: {INSTALL[name]}'}")
    echo(
        "\nFamilies of text decoders (give a hub id, a folder or a .gguf file as --model). Any other type of decoder is"
    )
    echo("checked when it is loaded. `layerlens models --check` tries every type that transformers has.\n")
    for name, family in FAMILIES.items():
        if family.has_encoder:
            continue
        blocks = "parallel blocks" if family.parallel is True else "sequential blocks"
        if isinstance(family.parallel, str):
            blocks = f"parallel blocks if config.{family.parallel}"
        echo(f"  {name:<22} {blocks}")


def _kept(coverages: "Iterable[Coverage]", kept: "list[Coverage]") -> "Iterator[Coverage]":
    for one in coverages:
        kept.append(one)
        yield one


def _as_json(coverages: "Iterable[Coverage]") -> Iterator[str]:
    before = "["
    for one in coverages:
        yield before + json_format.dumps(asdict(one))
        before = ","
    yield "]"


def _as_lines(coverages: "Iterable[Coverage]") -> Iterator[str]:
    """One line per family with the steps that work or the reason why it fails, and a last line that counts them."""
    from layerlens.support.coverage import STEPS, summed_up

    yield f"{'family':<24}  verdict    seconds  {'  '.join(STEPS)}  parts  layers of the tiny model"
    kept: list[Coverage] = []
    for one in _kept(coverages, kept):
        start = f"{one.name:<24}  {one.verdict:<9}  {one.seconds:7.1f}  "
        if one.verdict != "works":
            yield start + one.reason
            continue
        marks = dict.fromkeys(STEPS, "yes") | ({"padding": "alone"} if one.padding else {})
        marks |= {"drafts": "no"} if one.drafts else {}
        steps = "  ".join(f"{mark:<{len(step)}}" for step, mark in marks.items())
        alone = f"; alone, because {one.padding}" if one.padding else ""
        yield f"{start}{steps}  {'yes' if one.parts else 'null':<5}  {one.kinds}{alone}"
    yield f"{summed_up(kept)}; {sum(one.seconds for one in kept):,.0f} s"


def datasets() -> None:
    """List the datasets that --dataset knows."""
    from layerlens.datasets import names
    from layerlens.evaluation.benchmarks import NAMES

    for card in names():
        echo(f"  {card.name:<8} {card.hub_id or 'shipped with layerlens'}{' (gated)' if card.gated else ''}")
        scored = "; a benchmark of `layerlens eval`" if card.name in NAMES else ""
        echo(f"           {card.description} ({card.licence}){scored}")
