"""`layerlens generate`: a text, with the tokens that another layer than the last one chose."""

from typing import Annotated, Any

import typer

from layerlens.cli import options
from layerlens.errors import OptionError


def generate(
    model: options.Model,
    prompt: Annotated[str, typer.Option(help="What to answer.")],
    strategy: options.StrategyName = "valley",
    window: options.Window = None,
    p: options.Probability = None,
    criterion: options.CriterionName = None,
    scan: options.Scan = None,
    entropy_floor: options.EntropyFloor = None,
    compare: Annotated[bool, typer.Option("--compare", help="Show the last layer's text beside it.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 256,
    min_new_tokens: options.MinNewTokens = 0,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    stop_strings: options.StopStrings = None,
    seed: Annotated[int, typer.Option(help="Of sampling and of --p.")] = 0,
    no_chat_template: Annotated[bool, typer.Option("--no-chat-template", help="Give the prompt as it is.")] = False,
    system: Annotated[str | None, typer.Option(help="System message before the prompt.")] = None,
    dtype: options.Dtype = "auto",
    device: options.Device = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
) -> None:
    """Answer a prompt, and mark every token that the strategy changed: [last layer's token -> emitted token]."""
    from layerlens.decode.options import GenerateOptions

    if not prompt:
        raise OptionError("--prompt is empty; give a text")
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": min_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "repetition_penalty": repetition_penalty,
        "stop_strings": stop_strings or None,
        "seed": seed,
        "chat_template": False if no_chat_template else None,
        "system": system,
    }
    GenerateOptions(**settings)
    chosen = options.chosen_strategy(
        strategy, window, window_has_other_use=False, p=p, criterion=criterion, scan=scan, entropy_floor=entropy_floor
    )

    import layerlens as ll
    from layerlens.cli.text import print_generation, print_side_by_side

    loaded = ll.load(
        model,
        dtype=dtype,
        device=device,
        revision=revision,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )
    found = ll.generate(loaded, prompt, strategy=chosen, **settings)
    if compare:
        last = ll.generate(loaded, prompt, strategy=ll.Last(), **settings)
        print_side_by_side(loaded, "last", last, strategy, found, sampled=temperature > 0)
    else:
        print_generation(loaded, strategy, found, sampled=temperature > 0)
