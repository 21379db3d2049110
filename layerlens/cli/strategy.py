"""The options that choose a decoding strategy, the same for every command."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerlens.decode.strategies import Strategy

STRATEGY = "last, valley (trough), valley-1, valley+1, last-1, dola-low, dola-high, sled, or a registered name."
P = "Probability of the strategy's layer, drawn for each token. [default: 1]"
CRITERION = "What is to fall: shannon, neg-sum-sq-logp, max-prob, margin. [default: shannon]"
SCAN = "How candidates are read out: batched, lazy, auto. [default: auto]"
FLOOR = "Do not walk where the last entropy is below, in nats. [default: 0, exact]"


def chosen_strategy(name: str, window: int | None, *, window_has_other_use: bool, **options: Any) -> "Strategy":
    """The strategy of that name with the options that were given; a trace uses a window for its valley column too."""
    from layerlens.decode.names import named_strategy
    from layerlens.decode.strategies import Valley

    given = {option: value for option, value in options.items() if value is not None}
    strategy = named_strategy(name, **given)
    if window is None or (window_has_other_use and not isinstance(strategy, Valley)):
        return strategy
    return named_strategy(name, window=window, **given)
