"""`layerlens generate`: a text in which the tokens are marked that the strategy changed."""

from pathlib import Path
from typing import Annotated

import typer

from layerlens.cli import options
from layerlens.errors import OptionError, spelled


@options.grouped
def generate(
    *,
    model: options.Model,
    prompt: Annotated[str, typer.Option(help="Prompt to answer.")],
    strategy: options.StrategyName = "valley",
    window: options.Window = None,
    strategy_options: options.StrategyOptions,
    lens: options.Lens = None,
    drafting: options.Drafting,
    save_skip_set: Annotated[
        Path | None, typer.Option(help="With --draft: JSON file for the blocks that the policy left out in the end.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also generate from the last layer, and show both texts side by side.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Generate at most this many tokens.")] = 256,
    decoding: options.Decoding,
    loading: options.Loading,
) -> None:
    """Answer a prompt, and mark every token that the strategy changed: last layer's token -> emitted token.

    A mark stands in brackets that the text itself does not contain. On a terminal it has colours. In a pipe or a file,
    lines are not wrapped, and the two texts of --compare stand one below the other.
    """
    from layerlens.decode.options import GenerateOptions
    from layerlens.decode.registry import refuse_unknown

    if not prompt:
        raise OptionError(f"{spelled('prompt')} is empty", "give a text", option="prompt", given=prompt)
    settings = decoding.settings(max_new_tokens=max_new_tokens)
    GenerateOptions(**settings)
    refuse_unknown(strategy)
    drafting.refuse_unknown()
    _refuse_unwritable(save_skip_set, drafting.draft)
    loading.refuse_unloadable(model, window)
    # and what needs torch
    chosen = strategy_options.strategy(strategy, window)
    loading.refuse_unfit(model, chosen)
    options.refuse_no_lens(lens)
    policy = drafting.policy()

    import layerlens as ll
    from layerlens.cli.text import print_drafts, print_generation, print_side_by_side

    loaded, sampled = loading.load(model), decoding.temperature > 0
    chosen.fit(loaded.n_layers, loaded.tied)
    drafter = None if policy is None else ll.Drafter(loaded, policy)
    generation = ll.generate(loaded, prompt, strategy=chosen, lens=lens, draft=drafter, **settings)
    if compare:
        last = ll.generate(loaded, prompt, strategy=ll.Last(), **settings)
        print_side_by_side(loaded, "last", last, strategy, generation, sampled=sampled, drafted=drafter is not None)
    else:
        print_generation(loaded, strategy, generation, sampled=sampled, drafted=drafter is not None)
    if drafter is not None:
        print_drafts(drafter)
        if save_skip_set is not None:
            if drafter.skips:
                drafter.skips.save(save_skip_set, loaded)
                typer.echo(f"skip set written to {save_skip_set}")
            else:
                typer.echo(f"layerlens: no blocks are left out, so that {save_skip_set} was not written", err=True)


def _refuse_unwritable(path: Path | None, draft: str | None) -> None:
    if path is None:
        return
    from layerlens.records.places import refuse_inside, refuse_no_folder, refuse_other_suffix

    if draft is None:
        what = f"has no effect without {spelled('draft')}"
        raise OptionError.about("save_skip_set", path, what, "name a policy, or leave it out")
    refuse_other_suffix(path, (".json",), "save_skip_set")
    refuse_inside(path, option="save_skip_set")
    refuse_no_folder(path.expanduser(), "save_skip_set")
