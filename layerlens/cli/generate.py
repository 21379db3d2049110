"""`layerlens generate`: a text, with the tokens that another layer than the last one chose."""

from typing import Annotated

import typer

from layerlens.cli import options
from layerlens.errors import OptionError, spelled


@options.grouped
def generate(
    *,
    model: options.Model,
    prompt: Annotated[str, typer.Option(help="What to answer.")],
    strategy: options.StrategyName = "valley",
    window: options.Window = None,
    strategy_options: options.StrategyOptions,
    lens: options.Lens = None,
    compare: Annotated[bool, typer.Option("--compare", help="Show the last layer's text beside it.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 256,
    decoding: options.Decoding,
    loading: options.Loading,
) -> None:
    """Answer a prompt, and mark every token that the strategy changed: last layer's token -> emitted token.

    A mark stands in brackets that the text does not hold, on a terminal in colour. A pipe or file gets the text as it
    is, never wrapped, and the two texts of --compare one below the other.
    """
    from layerlens.decode.options import GenerateOptions
    from layerlens.decode.registry import refuse_unknown

    if not prompt:
        raise OptionError(f"{spelled('prompt')} is empty", "give a text", option="prompt", given=prompt)
    settings = decoding.settings(max_new_tokens=max_new_tokens)
    GenerateOptions(**settings)
    refuse_unknown(strategy)
    loading.refuse_unloadable(model, window)
    # and what needs torch
    chosen = strategy_options.strategy(strategy, window)
    options.refuse_no_lens(lens)

    import layerlens as ll
    from layerlens.cli.text import print_generation, print_side_by_side

    loaded, sampled = loading.load(model), decoding.temperature > 0
    chosen.fit(loaded.n_layers, loaded.tied)
    generation = ll.generate(loaded, prompt, strategy=chosen, lens=lens, **settings)
    if compare:
        last = ll.generate(loaded, prompt, strategy=ll.Last(), **settings)
        print_side_by_side(loaded, "last", last, strategy, generation, sampled=sampled)
    else:
        print_generation(loaded, strategy, generation, sampled=sampled)
