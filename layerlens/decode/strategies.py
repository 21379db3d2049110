"""Which layer's logits the sampler gets. A strategy names the layers it needs and turns their readouts into logits;
it knows nothing about generation."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import NamedTuple, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor

from layerlens.axes import Logits, TokenIds
from layerlens.decode.criteria import CRITERIA
from layerlens.decode.readouts import Readouts
from layerlens.decode.scan import SCANS, walk_back
from layerlens.errors import OptionError, did_you_mean, spelled
from layerlens.lens.sums import arg_max
from layerlens.records.schema import default_window, refuse_deeper


class Choice(NamedTuple):
    """What a strategy decided about each row of one step."""

    logits: Logits
    """Logits for the sampler, after logit scale and soft-cap."""
    selected_layer: TokenIds
    """The layer 1..L that the logits come from; L for strategies that combine layers."""
    last_token_id: TokenIds
    """Arg-max of the last layer's logits."""
    valley_layer: TokenIds | None = None
    """The layer where the walk back ended, 1..L; None for strategies that do not walk."""
    values: Float[Tensor, "rows window"] | None = None
    """The criterion of the window's layers, L last; NaN where a layer was not read."""


class Strategy(ABC):
    """Base class of every decoding strategy. Subclass it as a frozen dataclass, then use `register_strategy`."""

    criterion: str = "values"
    """The name of what `Choice.values` holds, which is lower where a layer is surer: one of `CRITERIA`, or a name of
    your own. The log has a column of that name; for "shannon" the column is called "entropy"."""
    whole_batch: bool = False
    """Whether the rows of a batch depend on each other. If they do not, a large batch is read out in parts."""
    is_untouched: bool = False
    """Whether the model's own logits are always left as they are, whatever the model and the options."""

    def for_one_row(self) -> "Strategy":
        """A strategy that chooses for each row of a batch what this one chooses for the row alone."""
        return self

    @property
    def by_shards(self) -> bool:
        """Whether `choose` only selects among rows of logits, by entropy and `Readouts.first_choice`. Then parts of the
        vocabulary can lie in different processes, and each process chooses its part."""
        return False

    @property
    def label(self) -> str | None:
        """The name in figures, such as "valley+1"; None: the name by which it was registered."""
        return None

    def window_in(self, n_layers: int) -> int | None:
        """How many layers of a model of L a walk back chooses among, the last one included; None without a walk."""
        return None

    def fit(self, n_layers: int, tied: bool) -> None:
        """OptionError where the strategy does not fit a model of L layers."""
        layers_of(self, n_layers, tied)

    @abstractmethod
    def layers(self, n_layers: int, tied: bool = False) -> Sequence[int]:
        """The layers 0..L whose states `choose` reads out. Without any, (), the model's own logits stay as they are.

        Args:
            n_layers: L.
            tied: whether the unembedding is the embedding.

        Raises:
            OptionError: an option does not fit a model of so many layers.
        """

    @abstractmethod
    def choose(self, readouts: Readouts) -> Choice:
        """The logits for the sampler, from the readouts of one step."""


def layers_of(strategy: Strategy, n_layers: int, tied: bool) -> tuple[int, ...]:
    """The layers that a strategy needs of this model; OptionError where it is not a strategy or does not fit."""
    if not isinstance(strategy, Strategy):
        advice = "give one such as Valley(window=10), or its name, such as 'valley'"
        raise OptionError.about("strategy", strategy, "is not a strategy", advice)
    layers = strategy.layers(n_layers, tied)
    whole = isinstance(layers, Sequence) and all(isinstance(layer, int) for layer in layers)
    if not whole or any(not 0 <= layer <= n_layers for layer in layers):
        raise OptionError(
            f"{type(strategy).__name__} asks for layers {layers!r} of a model of {n_layers} layers",
            f"return numbers from 0 to {n_layers} from its `layers`",
            option="strategy",
            given=layers,
        )
    return tuple(layers)


@dataclass(frozen=True)
class Last(Strategy):
    """The model's own logits, untouched."""

    criterion = "shannon"
    is_untouched = True

    @property
    def label(self) -> str | None:
        """last."""
        return "last" if type(self) is Last else None

    def layers(self, n_layers: int, tied: bool = False) -> Sequence[int]:
        """None: the model's own logits."""
        return ()

    def choose(self, readouts: Readouts) -> Choice:
        """Layer L of every row."""
        logits = readouts.logits([readouts.n_layers])[:, 0]
        top = arg_max(logits)
        return Choice(logits, torch.full_like(top, readouts.n_layers), top)


@dataclass(frozen=True)
class Fixed(Strategy):
    """Always the same earlier layer."""

    criterion = "shannon"

    offset: int
    """Layers before the last one: layer L − offset."""
    p: float = 1.0
    """Probability of using that layer, drawn for each token; otherwise the last layer is used."""

    def __post_init__(self) -> None:
        whole_number("offset", self.offset, 0)
        _probability(self.p)

    @property
    def label(self) -> str | None:
        """last-N, for N layers before the last; "last" where that is the last one."""
        if type(self) is not Fixed:
            return None
        return f"last-{self.offset}" if self != Fixed(0) else "last"

    def for_one_row(self) -> "Strategy":
        """A strategy that chooses for each row of a batch what this one chooses for the row alone."""
        return self

    @property
    def by_shards(self) -> bool:
        """Always, unless a subclass chooses in another way."""
        return type(self) is Fixed

    def layers(self, n_layers: int, tied: bool = False) -> Sequence[int]:
        """L − offset, and L to compare with; none where L − offset is L."""
        if self.offset >= n_layers:
            what = f"does not fit a model of {n_layers} layers"
            advice = f"give {spelled('offset', 0)} to {spelled('offset', n_layers - 1)}"
            raise OptionError.about("offset", self.offset, what, advice)
        return () if self.offset == 0 or self.p == 0 else (n_layers - self.offset, n_layers)

    def choose(self, readouts: Readouts) -> Choice:
        """Layer L − offset where the row's draw is below p, else L."""
        n_layers = readouts.n_layers
        logits = readouts.logits([n_layers - self.offset, n_layers])
        acts = readouts.uniform < self.p
        return Choice(
            torch.where(acts.unsqueeze(1), logits[:, 0], logits[:, 1]),
            torch.where(acts, n_layers - self.offset, n_layers),
            readouts.first_choice(logits[:, 1]),
        )


@dataclass(frozen=True)
class Valley(Strategy):
    """Confident Decoding: walk back from the last layer while the entropy strictly falls. Eq. 7 of arXiv 2606.21906."""

    window: int | None = None
    """Number of candidate layers, the last one included, so a walk has at most window − 1 steps. None: 10, or all
    layers of a smaller model."""
    p: float = 1.0
    """Probability of using the valley, drawn for each token; otherwise the last layer is used."""
    shift: int = 0
    """How many layers deeper (+) or shallower (−) than the valley is used, for every token; the result stays in the
    window. A shift as large as the window, or larger, is refused, because it could never act."""
    criterion: str = "shannon"
    """The criterion that must fall along the walk: one of `CRITERIA`."""
    scan: str = "auto"
    """How candidates are read out: "batched", "lazy", or "auto". The result is the same."""
    entropy_floor: float = 0.0
    """Do not walk where the entropy of the last layer, in nats, is below this. With 0 every token is walked, as in the
    paper."""

    def __post_init__(self) -> None:
        if self.window is not None:
            whole_number("window", self.window, 1)
        whole_number("shift", self.shift, None)
        _probability(self.p)
        for name, known in (("criterion", list(CRITERIA)), ("scan", list(SCANS))):
            if getattr(self, name) not in known:
                given = getattr(self, name)
                raise OptionError.about(
                    name, given, "is unknown", did_you_mean(given, known, f"give {', '.join(known)}")
                )
        floor = self.entropy_floor
        if not is_number(floor) or not 0 <= floor < float("inf"):
            raise OptionError.about("entropy_floor", floor, "is out of range", "give nats, 0 or more")
        if floor > 0 and self.criterion != "shannon":
            what = f"is in nats and has no meaning for {self.criterion}"
            raise OptionError.about("entropy_floor", floor, what, "leave it out")

    @property
    def label(self) -> str | None:
        """valley, with the shift if there is one: valley+1."""
        if type(self) is not Valley:
            return None
        return f"valley{self.shift:+d}" if self.shift else "valley"

    def for_one_row(self) -> "Strategy":
        """A strategy that chooses for each row of a batch what this one chooses for the row alone."""
        return self

    @property
    def by_shards(self) -> bool:
        """Where it compares entropies, unless a subclass chooses in another way."""
        return type(self) is Valley and self.criterion == "shannon"

    def layers(self, n_layers: int, tied: bool = False) -> Sequence[int]:
        """The window's layers; none where only L can be chosen."""
        window = self.window_in(n_layers)
        if abs(self.shift) >= window:
            reach = f"from {1 - window} to {window - 1}" if window > 1 else "0"
            layers = f"{window} layer{'s' * (window > 1)} of a model of {n_layers}"
            what, advice = f"can never act in a window of {layers}", f"give a shift {reach}, or a larger window"
            raise OptionError.about("shift", self.shift, what, advice)
        return () if self.p == 0 or window == 1 else tuple(range(n_layers - window + 1, n_layers + 1))

    def choose(self, readouts: Readouts) -> Choice:
        """The valley's layer, shifted, where the row's draw is below p, else L."""
        n_layers, window = readouts.n_layers, self.window_in(readouts.n_layers)
        walk = walk_back(readouts, window, CRITERIA[self.criterion], self.scan, self.entropy_floor)
        valley = n_layers - walk.steps
        last_token_id = readouts.first_choice(walk.last_logits)
        if self.p == 1 and self.shift == 0:
            return Choice(walk.valley_logits, valley, last_token_id, valley, walk.values)
        acts = readouts.uniform < self.p
        selected = torch.where(acts, (valley + self.shift).clamp(n_layers - window + 1, n_layers), n_layers)
        if self.shift:
            logits = readouts.logits_at(selected)
        else:
            logits = torch.where(acts.unsqueeze(1), walk.valley_logits, walk.last_logits)
        return Choice(logits, selected, last_token_id, valley, walk.values)

    def window_in(self, n_layers: int) -> int:
        """The window in a model of so many layers; OptionError where it does not fit."""
        window = default_window(n_layers) if self.window is None else self.window
        refuse_deeper(window, n_layers)
        return window


def whole_number(name: str, value: object, least: int | None) -> None:
    """OptionError unless the value is a whole number of at least `least`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or (least is not None and value < least):
        bound = "" if least is None else f" from {least}"
        raise OptionError.about(name, value, "is out of range", f"give a whole number{bound}")


def is_number(value: object) -> TypeGuard[float]:
    """Whether the value is a real number, of Python or of a library."""
    return isinstance(value, Real) and not isinstance(value, bool)


def true_or_false(name: str, value: object) -> None:
    """OptionError unless the value is True or False."""
    if not isinstance(value, bool):
        raise OptionError.about(name, value, "is neither True nor False", "give one of them")


def _probability(p: object) -> None:
    if not is_number(p) or not 0 <= p <= 1:
        raise OptionError.about("p", p, "is not a probability", "give a number from 0 to 1")
