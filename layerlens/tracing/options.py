"""What can be asked of a trace."""

from dataclasses import dataclass, replace
from typing import ClassVar

from layerlens.decode.options import GenerateOptions, flag, settle_chat_template, whole
from layerlens.errors import OptionError
from layerlens.records.schema import default_window


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
                known = " or ".join(choice for choice in choices if choice)
                raise OptionError(f"{flag(name)} {getattr(self, name)!r} is unknown; give {known}")
        if self.samples and self.max_new_tokens == 0:
            raise OptionError(
                f"--temperature {self.temperature} has no effect with --max-new-tokens 0; drop one of them"
            )
        if self.kl and self.lens_precision != "float32":
            raise OptionError(f"--kl needs --lens-precision float32, not {self.lens_precision}; leave one of them out")
        if self.max_new_tokens == 0 and self.mode == "generate":
            raise OptionError("--mode generate with --max-new-tokens 0 generates nothing; drop one of them")
        if self.max_new_tokens == 0 and self.positions == "generated":
            raise OptionError("--positions generated with --max-new-tokens 0 keeps nothing; give --positions all")

    def settled(self, n_layers: int, has_chat_template: bool) -> "TraceOptions":
        """The same with every None that stands for a default replaced by what it means for this model."""
        given_text = self.max_new_tokens == 0
        window = default_window(n_layers) if self.window is None else self.window
        if window > n_layers:
            raise OptionError(f"--window {window} does not fit a model of {n_layers} layers; give 1..{n_layers}")
        settled = replace(
            self,
            mode=self.mode or ("replay" if given_text else "generate"),
            positions=self.positions or ("all" if given_text else "generated"),
            window=window,
        )
        return settle_chat_template(settled, has_chat_template)
