"""`layerlens generate`: a text in which the tokens are marked that the strategy changed."""

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
    loading.refuse_unloadable(model, window)
    # and what needs torch
    chosen = strategy_options.strategy(strategy, window)
    loading.refuse_unfit(model, chosen)
    options.refuse_no_lens(lens)
    policy = drafting.policy()

    import layerlens as ll
    from layerlens.cli.text import print_generation, print_side_by_side

    loaded, sampled = loading.load(model), decoding.temperature > 0
    chosen.fit(loaded.n_layers, loaded.tied)
    drafter = None if policy is None else ll.Drafter(loaded, policy)
    generation = ll.generate(loaded, prompt, strategy=chosen, lens=lens, draft=drafter, **settings)
    if compare:
        last = ll.generate(loaded, prompt, strategy=ll.Last(), **settings)
        print_side_by_side(loaded, "last", last, strategy, generation, sampled=sampled, drafted=drafter is not None)
    else:
        print_generation(loaded, strategy, generation, sampled=sampled, drafted=drafter is not None)
    drafting.end(drafter)
