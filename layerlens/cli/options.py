"""What several commands take, said once."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from layerlens.decode.strategies import Strategy

Model = Annotated[str, typer.Option(help="Hub id, folder, .gguf file, or smollm2-135m-instruct.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str | None, typer.Option(help="Such as cpu or cuda:0. [default: a GPU if there is one]")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the model.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
AllowPickle = Annotated[bool, typer.Option("--allow-pickle", help="Read pickled weights, which can run code.")]

MinNewTokens = Annotated[int, typer.Option(help="Tokens before an end token may be emitted.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy; above, sampling.")]
TopP = Annotated[float, typer.Option(help="Nucleus of sampling.")]
TopK = Annotated[int, typer.Option(help="Sample from this many most probable tokens; 0 for all.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1: disfavour tokens that were there.")]
StopStrings = Annotated[list[str] | None, typer.Option(help="Text that ends a generation; repeatable.")]
BatchSize = Annotated[int, typer.Option(help="Prompts that go through the model together.")]

StrategyName = Annotated[
    str,
    typer.Option(
        help="last, valley (trough), valley-1, valley+1, last-1, dola-low, dola-high, sled, or a registered name."
    ),
]
Window = Annotated[int | None, typer.Option(help="Candidate layers of a valley. [default: 10]")]
Probability = Annotated[
    float | None, typer.Option(help="Probability of the strategy's layer, drawn for each token. [default: 1]")
]
CriterionName = Annotated[
    str | None, typer.Option(help="What is to fall: shannon, neg-sum-sq-logp, max-prob, margin. [default: shannon]")
]
Scan = Annotated[str | None, typer.Option(help="How candidates are read out: batched, lazy, auto. [default: auto]")]
EntropyFloor = Annotated[
    float | None, typer.Option(help="Do not walk where the last entropy is below, in nats. [default: 0, exact]")
]


def chosen_strategy(name: str, window: int | None, *, window_has_other_use: bool, **options: Any) -> "Strategy":
    """The strategy of that name with the options that were given; a trace uses a window for its valley column too."""
    from layerlens.decode.names import named_strategy
    from layerlens.decode.strategies import Valley

    given = {option: value for option, value in options.items() if value is not None}
    strategy = named_strategy(name, **given)
    if window is None or (window_has_other_use and not isinstance(strategy, Valley)):
        return strategy
    return named_strategy(name, window=window, **given)
