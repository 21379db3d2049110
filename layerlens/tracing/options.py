"""The options of a trace."""

from dataclasses import dataclass, replace
from typing import ClassVar

from layerlens.decode.options import GenerateOptions, settle_chat_template, whole
from layerlens.errors import OptionError, did_you_mean, spelled
from layerlens.records.schema import default_window, refuse_deeper

_MOST_TOP = 20


@dataclass(frozen=True)
class TraceOptions(GenerateOptions):
    """Options of a trace: those of a generation, and these. Options that contradict each other are refused at once.

    With `max_new_tokens` 0, only the given texts are traced. Batches follow the order of the dataset.
    """

    mode: str | None = None
    """Record while generating ("generate"), or in one pass afterwards ("replay"). None: "replay" for given texts, else
    "generate"."""
    positions: str | None = None
    """Keep only the states that emitted a token ("generated"), or all of them ("all"). None: "all" for given texts,
    else "generated"."""
    window: int | None = None
    """Number of candidate layers of Eq. 7, the last one included, for the column `valley_layer`. None: the window of
    the strategy if it walks, else 10, or all layers of a smaller model. A strategy decodes with its own window."""
    kl: bool = False
    """Also record KL(last layer ‖ layer). For this, the states of all layers are kept until those of the last layer are
    known; for given texts and in replay these are the states of the whole pass."""
    js: bool = False
    """Also record the Jensen-Shannon divergence of each layer from the last one. States are kept as for `kl`, and the
    products of every layer with the vocabulary are made twice."""
    targets: bool = False
    """Also record the log-probability and the rank that each layer gives to the token that followed. While generating,
    the states of a pass are kept until its token is known."""
    top: int = 0
    """Also record this many first tokens of each layer and their probabilities, at most 20; 0: none."""
    sublayers: bool = False
    """Also read the stream between attention and MLP of each block: its entropy and top token."""
    confidence: bool = False
    """Also record how peaked is what attention and MLP of each block return, over its own entries and over the
    vocabulary, as ConfLayers (arXiv 2604.14612) compares layers. The vocabulary takes two more products of each layer
    with the unembedding."""
    lens_precision: str = "float32"
    """Precision of the products with the unembedding, on a CPU: "float32", or "bfloat16" with the likeliest tokens in
    float32, for processors with AVX512-BF16 or AMX. With "bfloat16", entropies are within 0.01 nats for 99 of 100
    states (0.016 in the last layer of the worst text tried). It takes three quarters of the time, and memory for a copy
    of the unembedding in bfloat16."""

    _least_new_tokens: ClassVar[int] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is not None:
            whole("window", self.window, 1)
        for name, choices in (
            ("mode", (None, "generate", "replay")),
            ("positions", (None, "generated", "all")),
            ("lens_precision", ("float32", "bfloat16")),
        ):
            if getattr(self, name) not in choices:
                given, known = getattr(self, name), [choice for choice in choices if choice]
                advice = did_you_mean(given, known, f"give {' or '.join(known)}")
                raise OptionError.about(name, given, "is unknown", advice)
        refuse_too_many(self.top)
        for name in ("kl", "js", "targets", "top", "confidence"):
            if getattr(self, name) and self.lens_precision != "float32":
                what = f"does not go with {spelled('lens_precision', self.lens_precision)}"
                raise OptionError.about(name, getattr(self, name), what, "leave one of them out")
        if self.max_new_tokens == 0:
            given_text = f"with {spelled('max_new_tokens', 0)}"
            if self.samples:
                what = f"{given_text} has no effect"
                raise OptionError.about("temperature", self.temperature, what, "drop one of them")
            if self.mode == "generate":
                what = f"{given_text} generates nothing"
                raise OptionError.about("mode", self.mode, what, "drop one of them")
            if self.positions == "generated":
                advice = f"give {spelled('positions', 'all')}"
                raise OptionError.about("positions", self.positions, f"{given_text} keeps nothing", advice)

    def settled(self, n_layers: int, has_chat_template: bool) -> "TraceOptions":
        """The same options, with every None that stands for a default replaced by its value for this model."""
        given_text = self.max_new_tokens == 0
        window = default_window(n_layers) if self.window is None else self.window
        refuse_deeper(window, n_layers)
        settled = replace(
            self,
            mode=self.mode or ("replay" if given_text else "generate"),
            positions=self.positions or ("all" if given_text else "generated"),
            window=window,
        )
        return settle_chat_template(settled, has_chat_template)


def refuse_too_many(top: object) -> None:
    """OptionError unless so many first tokens of each layer can be recorded."""
    whole("top", top, 0)
    if int(top) > _MOST_TOP:  # type: ignore[call-overload]
        raise OptionError.about("top", top, "is too many", f"give {_MOST_TOP} at most")
