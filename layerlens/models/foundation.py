"""What a model's readings rest on, noted when it was loaded."""

from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Foundation:
    """What the readings of a model rest on.

    Attributes:
        stack: path of the list of its blocks.
        ends: paths of the modules between the last block and the logits, with the modules inside of them.
        around: paths of the modules that hold the blocks or the head: what they run decides which states there are.
        parts: paths of the modules at which attention and MLP part are told apart.
        copied: whether the readout holds copies of those ends, on another device or in another form.
        fixed: each is a phrase and a value; where one differs, the readings would be another model's.
        watched: likewise; where one differs, only a pass can tell whether the readings still hold.
        numbers: likewise, and the pass need not be made again while they stay as it found them; hooks and forwards can
            act otherwise the next time.
    """

    stack: str
    ends: tuple[str, ...]
    around: tuple[str, ...]
    parts: tuple[str, ...]
    copied: bool
    fixed: dict[str, object]
    watched: dict[str, object]
    numbers: dict[str, object]
