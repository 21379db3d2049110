"""What can be asked of a trace."""

from dataclasses import dataclass, replace
from typing import ClassVar

from layerlens.decode.options import GenerateOptions, settle_chat_template, whole
from layerlens.errors import OptionError, did_you_mean, spelled
from layerlens.records.schema import default_window, refuse_deeper

_MOST_TOP = 20


@dataclass(frozen=True)
class TraceOptions(GenerateOptions):
    """Options of a trace: those of the generation, and these. Contradictions are refused at once.

    With `max_new_tokens` 0 the given text is traced. Batches follow the order of the dataset.
    """

    mode: str | None = None
    """Record while generating ("generate") or in one pass afterwards ("replay"); None: replay given text only."""
    positions: str | None = None
    """Keep the states that emitted a token ("generated") or every one ("all"); None: all of given text only."""
    window: int | None = None
    """Candidate layers of Eq. 7, the last one included, for `valley_layer`; None: those of the strategy where it
    walks, else 10, or all layers where there are fewer. A strategy decodes from its own."""
    kl: bool = False
    """Also record KL(last layer ‖ layer), for which the states of all layers wait for those of the last one: of given
    text and in replay the whole pass' states at once."""
    js: bool = False
    """Also record the Jensen-Shannon divergence of each layer from the last one; states wait as for `kl`, and every
    layer's products with the vocabulary are made twice."""
    targets: bool = False
    """Also record the log-probability and the rank that each layer gives to the token that followed. While generating
    the states of a pass wait until its token is known."""
    top: int = 0
    """Also record this many first words of each layer and their probabilities, 20 at most; 0: none."""
    sublayers: bool = False
    """Also read the stream between attention and MLP of each block: its entropy and top word."""
    lens_precision: str = "float32"
    """Of the products with the unembedding, on a CPU: "float32", or "bfloat16" with the likeliest words in float32, for
    processors with AVX512-BF16 or AMX: entropies within 0.01 nats for 99 of 100 states (0.016 in the last layer of the
    worst text tried), in three quarters of the time, and a copy of the unembedding in bfloat16."""

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
        whole("top", self.top, 0)
        if self.top > _MOST_TOP:
            raise OptionError.about("top", self.top, "is too many", f"give {_MOST_TOP} at most")
        for name in ("kl", "js", "targets", "top"):
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
        """The same with every None that stands for a default replaced by what it means for this model."""
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
