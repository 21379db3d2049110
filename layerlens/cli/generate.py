"""`layerlens generate`: a text, with the tokens that another layer than the last one chose."""

from typing import Annotated, Any

import typer

from layerlens.cli.strategy import CRITERION, FLOOR, SCAN, STRATEGY, P, chosen_strategy
from layerlens.errors import OptionError


def generate(
    model: Annotated[str, typer.Option(help="Hub id, folder, .gguf file, or smollm2-135m-instruct.")],
    prompt: Annotated[str, typer.Option(help="What to answer.")],
    strategy: Annotated[str, typer.Option(help=STRATEGY)] = "valley",
    window: Annotated[int | None, typer.Option(help="Candidate layers of a valley. [default: 10]")] = None,
    p: Annotated[float | None, typer.Option(help=P)] = None,
    criterion: Annotated[str | None, typer.Option(help=CRITERION)] = None,
    scan: Annotated[str | None, typer.Option(help=SCAN)] = None,
    entropy_floor: Annotated[float | None, typer.Option(help=FLOOR)] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Show the last layer's text beside it.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 256,
    min_new_tokens: Annotated[int, typer.Option(help="Tokens before an end token may be emitted.")] = 0,
    temperature: Annotated[float, typer.Option(help="0 is greedy; above, sampling.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus of sampling.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample from this many most probable tokens; 0 for all.")] = 0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: disfavour tokens that were there.")] = 1.0,
    stop_strings: Annotated[list[str] | None, typer.Option(help="Text that ends a generation; repeatable.")] = None,
    seed: Annotated[int, typer.Option(help="Of sampling and of --p.")] = 0,
    no_chat_template: Annotated[bool, typer.Option("--no-chat-template", help="Give the prompt as it is.")] = False,
    system: Annotated[str | None, typer.Option(help="System message before the prompt.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:0. [default: a GPU if there is one]")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read pickled weights, which can run code.")
    ] = False,
) -> None:
    """Answer a prompt, and mark every token that the strategy changed: [last layer's token -> emitted token]."""
    from layerlens.decode.options import GenerateOptions

    if not prompt:
        raise OptionError("--prompt is empty; give a text")
    options: dict[str, Any] = {
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
    GenerateOptions(**options)
    chosen = chosen_strategy(
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
    found = ll.generate(loaded, prompt, strategy=chosen, **options)
    if compare:
        last = ll.generate(loaded, prompt, strategy=ll.Last(), **options)
        print_side_by_side(loaded, "last", last, strategy, found, sampled=temperature > 0)
    else:
        print_generation(loaded, strategy, found, sampled=temperature > 0)
