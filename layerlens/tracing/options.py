"""What can be asked of a trace."""

from dataclasses import dataclass, replace

from layerlens.errors import OptionError

DEFAULT_WINDOW = 10
LEAST_TEMPERATURE = 1e-3  # below, float32 logits over the temperature overflow


@dataclass(frozen=True)
class TraceOptions:
    """Options of a trace; contradictions are refused at once."""

    max_new_tokens: int = 256
    """Tokens to generate for each prompt at most; 0 traces the given text."""
    mode: str | None = None
    """Record while generating ("generate") or in one pass afterwards ("replay"); None: replay given text only."""
    positions: str | None = None
    """Keep the states that emitted a token ("generated") or every one ("all"); None: all of given text only."""
    window: int | None = None
    """Candidate layers of Eq. 7, the last one included; None: 10, or all layers where there are fewer."""
    batch_size: int = 1
    """Prompts that go through the model together, in the order of the dataset."""
    chat_template: bool | None = None
    """Wrap prompts in the tokenizer's chat template; None: where it has one."""
    system: str | None = None
    """System message before each prompt; needs a chat template."""
    temperature: float = 0.0
    """0 is greedy; above, sampling at this temperature."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with this much probability; 0 < top_p <= 1."""
    seed: int = 0
    """Of sampling; each batch has a generator of its own, so a resumed run samples the same tokens."""

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 0), ("batch_size", 1), ("seed", 0), ("window", 1)):
            value = getattr(self, name)
            if name == "window" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise OptionError(f"{_flag(name)} {value!r} is no whole number; give one from {least}")
            if getattr(self, name) < least:
                raise OptionError(f"{_flag(name)} {getattr(self, name)} is too small; give a whole number from {least}")
        for name, choices in (("mode", ("generate", "replay")), ("positions", ("generated", "all"))):
            if getattr(self, name) not in (None, *choices):
                raise OptionError(f"{_flag(name)} {getattr(self, name)!r} is unknown; give {' or '.join(choices)}")
        for name in ("temperature", "top_p"):
            if not isinstance(getattr(self, name), int | float):
                raise OptionError(f"{_flag(name)} {getattr(self, name)!r} is no number; give one")
        if self.temperature != 0 and not LEAST_TEMPERATURE <= self.temperature < float("inf"):
            raise OptionError(
                f"--temperature {self.temperature} is out of range; give 0 for greedy, or {LEAST_TEMPERATURE} and more"
            )
        if not 0.0 < self.top_p <= 1.0:
            raise OptionError(f"--top-p {self.top_p} is out of range; give a number above 0, 1 at most")
        if self.top_p < 1.0 and self.temperature == 0.0:
            raise OptionError(f"--top-p {self.top_p} has no effect on greedy decoding; give --temperature too")
        if self.temperature > 0 and self.max_new_tokens == 0:
            raise OptionError(
                f"--temperature {self.temperature} has no effect with --max-new-tokens 0; drop one of them"
            )
        if self.system is not None and self.chat_template is False:
            raise OptionError("--system needs the chat template that --no-chat-template turns off; drop one of them")
        if self.max_new_tokens == 0 and self.mode == "generate":
            raise OptionError("--mode generate with --max-new-tokens 0 generates nothing; drop one of them")
        if self.max_new_tokens == 0 and self.positions == "generated":
            raise OptionError("--positions generated with --max-new-tokens 0 keeps nothing; give --positions all")

    def settled(self, n_layers: int, has_chat_template: bool) -> "TraceOptions":
        """The same with every None that stands for a default replaced by what it means for this model."""
        given_text = self.max_new_tokens == 0
        window = min(DEFAULT_WINDOW, n_layers) if self.window is None else self.window
        if window > n_layers:
            raise OptionError(f"--window {window} does not fit a model of {n_layers} layers; give 1..{n_layers}")
        if not has_chat_template and (self.chat_template or self.system is not None):
            wanted = "--system" if self.system is not None else "chat_template=True"
            raise OptionError(f"{wanted} needs a chat template and this tokenizer has none; leave it out")
        return replace(
            self,
            mode=self.mode or ("replay" if given_text else "generate"),
            positions=self.positions or ("all" if given_text else "generated"),
            window=window,
            chat_template=has_chat_template if self.chat_template is None else self.chat_template,
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
