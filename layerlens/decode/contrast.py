"""DoLa and SLED: other methods, which contrast the last layer with earlier layers read without the final norm."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerlens.axes import Logits
from layerlens.decode.readouts import Readouts
from layerlens.decode.strategies import Choice, Strategy, is_number, true_or_false, whole_number
from layerlens.errors import OptionError, did_you_mean
from layerlens.lens.sums import arg_max

_CPU_BYTES = 2**20  # of the rows that are worked on together: they stay in the cache, and so do results in between


@dataclass(frozen=True)
class DoLa(Strategy):
    """Log-probabilities of the last layer minus those of the earlier layer that differs most from it. arXiv 2309.03883.

    The method also has a repetition penalty of 1.2. It is an option of the generation: give `repetition_penalty=1.2`
    there. The model's logit scale and soft-cap are applied to early layers too.
    """

    criterion = "shannon"

    candidates: str | tuple[int, ...] = "low"
    """"low" or "high": every second layer of that half of the model, as in transformers; or layers 0..L − 1."""
    divergence: str = "published"
    """½ [KL(M‖p_L) + KL(M‖p_l)] with M the mean ("published"), or the Jensen-Shannon divergence ("js")."""
    norm: bool = False
    """Read early layers with the final norm; the published method reads them without it."""
    per: str = "batch"
    """One early layer for the whole "batch" (published), or one for each "row". Rows that have ended do not count."""
    relative_top: float = 0.1
    """Only tokens at least this fraction as probable as the most probable one can be emitted; 0..1."""

    def __post_init__(self) -> None:
        for name, known in (("divergence", ("published", "js")), ("per", ("batch", "row"))):
            if getattr(self, name) not in known:
                asked = getattr(self, name)
                advice = did_you_mean(asked, known, f"give {' or '.join(known)}")
                raise OptionError.about(name, asked, "is unknown", advice)
        given = self.candidates
        numbers = isinstance(given, tuple) and given and all(type(n) is int and n >= 0 for n in given)
        if not numbers and given not in ("low", "high"):
            advice = "give low, high, or a tuple of layers from 0"
            raise OptionError.about("candidates", given, "are unknown", advice)
        if not is_number(self.relative_top) or not 0 <= self.relative_top <= 1:
            advice = "give a number from 0 to 1"
            raise OptionError.about("relative_top", self.relative_top, "is out of range", advice)
        true_or_false("norm", self.norm)

    @property
    def whole_batch(self) -> bool:  # type: ignore[override]
        """Whether one layer is chosen for the whole batch, so that all rows are needed at once."""
        return self.per == "batch"

    def for_one_row(self) -> "DoLa":
        """The same with a layer for each row."""
        return replace(self, per="row")

    def layers(self, n_layers: int, tied: bool = False) -> Sequence[int]:
        """The early candidates, then L."""
        if isinstance(self.candidates, str):
            return (*half(self.candidates, n_layers, tied=tied), n_layers)
        if max(self.candidates) >= n_layers:
            what = f"do not fit a model of {n_layers} layers"
            raise OptionError.about("candidates", self.candidates, what, f"give 0..{n_layers - 1}")
        return (*self.candidates, n_layers)

    def choose(self, readouts: Readouts) -> Choice:
        """log p_L − log p_l on plausible tokens, minus infinity elsewhere."""
        *early, n_layers = self.layers(readouts.n_layers, readouts.tied)
        last = readouts.logits([n_layers])[:, 0].log_softmax(1)
        lower = readouts.logits(early, norm=self.norm).log_softmax(2)
        differing = divergence(last.unsqueeze(1), lower, self.divergence)
        if self.per == "batch":
            counted = differing if readouts.alive is None else differing.where(readouts.alive.unsqueeze(1), 0.0)
            differing = counted.sum(0, keepdim=True).expand_as(differing)
        rows = torch.arange(len(last), device=last.device)
        scores = last - lower[rows, differing.argmax(1)]  # of candidates that differ equally, the one named first
        threshold = math.log(self.relative_top) if self.relative_top > 0 else -math.inf
        implausible = last < last.amax(1, keepdim=True) + threshold
        token_id = arg_max(last)
        return Choice(scores.masked_fill(implausible, -torch.inf), torch.full_like(token_id, n_layers), token_id)


@dataclass(frozen=True)
class SLED(Strategy):
    """The last layer's logits, moved a step towards the tokens at which the change from early to last logits points.

    arXiv 2411.02433. Only the `scale` most probable tokens can be emitted.
    """

    criterion = "shannon"

    rate: float = 2.0
    """Size of a step; the paper tried 0.5 to 3."""
    scale: int = 10
    """Tokens considered, from the most probable one; the paper tried 5, 10 and 20."""
    steps: int = 1
    """Steps: 1 for generation, 10 in the published multiple-choice scoring."""
    lower_bound: float = -100.0
    """Logit of every other token, below 0, relative to the lowest logit of a token that can be emitted. So a constant
    that is added to all logits changes no token. The published method takes the value as it is, which makes a
    difference only where that value lies above the logits."""
    norm: bool = False
    """Read early layers with the final norm; the published method reads them without it."""

    def __post_init__(self) -> None:
        for name in ("scale", "steps"):
            whole_number(name, getattr(self, name), 1)
        for name in ("rate", "lower_bound"):
            value = getattr(self, name)
            if not is_number(value) or not math.isfinite(value):
                raise OptionError.about(name, value, "is out of range", "give a number")
        if self.lower_bound >= 0:
            raise OptionError.about("lower_bound", self.lower_bound, "is out of range", "give a number below 0")
        if self.rate < 0:
            raise OptionError.about("rate", self.rate, "is out of range", "give 0 or more")
        true_or_false("norm", self.norm)

    def layers(self, n_layers: int, tied: bool = False) -> Sequence[int]:
        """Every layer, the embeddings included."""
        return tuple(range(n_layers + 1))

    def choose(self, readouts: Readouts) -> Choice:
        """The evolved logits of the most probable tokens; the logits of all other tokens lie below them."""
        n_layers = readouts.n_layers
        last = readouts.logits([n_layers])[:, 0]
        top = last.topk(min(self.scale, last.shape[1]), dim=1).indices
        weights = torch.stack(
            [_alignment(readouts.logits([layer], norm=self.norm)[:, 0], last, top) for layer in range(n_layers)]
        ).sum(0)
        total = weights.sum(1, keepdim=True)
        latent = torch.zeros_like(last).scatter(1, top, weights / total.clamp_min(1e-30))
        evolved = last
        for step in range(self.steps):
            gradient = (evolved.softmax(1) - latent) * (total > 0)  # no layer points anywhere: the logits stay
            evolved = evolved - self.rate * (1 - step / self.steps) * gradient
        token_id = arg_max(last)
        kept = evolved.gather(1, top)
        below = kept.amin(1, keepdim=True) + self.lower_bound
        logits = below.expand_as(last).scatter(1, top, kept)
        return Choice(logits, torch.full_like(token_id, n_layers), token_id)


def _alignment(early: Logits, last: Logits, token_ids: Int[Tensor, "rows chosen"]) -> Float[Tensor, "rows chosen"]:
    """`alignment`, of a few rows at a time."""
    n = _rows_at_once(early, early.element_size())
    parts = zip(early.split(n), last.split(n), token_ids.split(n), strict=True)
    return torch.cat([alignment(*part) for part in parts])


def _rows_at_once(logits: Logits, n_bytes: int) -> int:
    """How many rows of values of so many bytes are worked on together."""
    if logits.device.type != "cpu":
        return max(1, len(logits))
    return max(1, _CPU_BYTES // (n_bytes * logits.shape[-1]))


def alignment(early: Logits, last: Logits, token_ids: Int[Tensor, "rows chosen"]) -> Float[Tensor, "rows chosen"]:
    """max(0, cos(p − e_i, early − last))² for each token i, with p the softmax of the early logits; 0..1.

    How well the direction from the last logits back to the early ones agrees with the gradient that would pull the
    early distribution towards token i. Both vectors differ between tokens by one entry only, so no [chosen, vocab]
    tensor is needed.
    """
    probs = early.softmax(1)
    way = (early - last).masked_fill(last == -torch.inf, 0.0)  # banned tokens have no direction
    # Centred at the most probable token m, whose own share is summed over the other tokens: where p is nearly e_m,
    # p·way − way_m and 1 − p_m would lose all digits.
    best = probs.argmax(1, keepdim=True)
    others, way_from_best = probs.scatter(1, best, 0.0), way - way.gather(1, best)
    dot = torch.linalg.vecdot(others, way_from_best).unsqueeze(1) - way_from_best.gather(1, token_ids)
    p_i, p_best = probs.gather(1, token_ids), probs.gather(1, best)
    is_best = token_ids == best
    missing = torch.where(is_best, others.sum(1, keepdim=True), 1 - p_i)
    squares = others.square().sum(1, keepdim=True)
    rest = torch.where(is_best, squares, (squares + p_best.square() - p_i.square()).clamp_min(0.0))
    size = (rest + missing.square()).sqrt()
    cosine = dot / (size * torch.linalg.vector_norm(way, dim=1, keepdim=True)).clamp_min(1e-30)
    agreement: Tensor = cosine.clamp(0.0, 1.0).square()
    return agreement


def divergence(
    left: Float[Tensor, "batch 1 vocab"], right: Float[Tensor, "batch layers vocab"], kind: str
) -> Float[Tensor, "batch layers"]:
    """How far apart two distributions are, in nats, from their log-probabilities; 0 where they are equal.

    "published" is ½ [KL(M‖left) + KL(M‖right)] with M the mean of both, which has no upper bound; "js" is the
    Jensen-Shannon divergence ½ [KL(left‖M) + KL(right‖M)], 0..ln 2. It is computed in float64, one layer at a time: the
    values of layers read without the norm all lie within 1e-5 of ln 2, where float32 has steps of 6e-8.
    """
    wide = torch.float32 if left.device.type == "mps" else torch.float64
    n = _rows_at_once(left, wide.itemsize)
    pairs = zip(left.split(n), right.split(n), strict=True)
    parts = [_divergence(one.to(wide), other.to(wide), kind) for one, other in pairs]
    return torch.cat(parts)


def _divergence(
    left: Float[Tensor, "rows 1 vocab"], right: Float[Tensor, "rows layers vocab"], kind: str
) -> Float[Tensor, "rows layers"]:
    """One exponential and one logarithm for each value: both distributions' probabilities serve all of the terms."""
    last = left[:, 0].log_softmax(-1)
    p, found = last.exp(), []
    for layer in right.unbind(1):
        layer = layer.log_softmax(-1)
        q = layer.exp()
        mean = (p + q) / 2
        if kind == "js":  # what the two share, 2 m ln(2 m) - p ln p - q ln q, is 0 or more and exact near 0
            shared = _terms(2 * mean, (2 * mean).log()) - _terms(p, last) - _terms(q, layer)
            one = math.log(2) - shared.sum(-1).clamp_min(0.0) / 2
        else:
            one = _terms(mean, mean.log() - (last + layer) / 2).sum(-1)
        found.append(one.clamp_min(0.0))
    return torch.stack(found, dim=1)


def _terms(probs: Tensor, values: Tensor) -> Tensor:
    """probs * values; values without probability add nothing, not even where they are infinite."""
    terms: Tensor = (probs * values).masked_fill_(probs == 0, 0.0)
    return terms


def half(name: str, n_layers: int, *, tied: bool = False) -> tuple[int, ...]:
    """Every second layer of the "low" or "high" half, as transformers chose them.

    In models of more than 40 layers a half is limited to the first 20 or the last 20 layers. Read from the embeddings
    (0), a tied model would repeat the token that was read, so there the low half starts at 2.
    """
    middle = n_layers // 2
    if name == "high":
        return tuple(range(middle if n_layers <= 40 else n_layers - 20, n_layers, 2))
    start = (2 if n_layers > 2 else 1 if n_layers == 2 else 0) if tied else 0
    return tuple(range(start, middle if n_layers <= 40 else 20, 2)) or (start,)
