"""What a model's readings depend on, recorded when it was loaded."""

from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Foundation:
    """What the readings of a model depend on.

    Attributes:
        stack: path of the list of its blocks.
        ends: paths of the modules between the last block and the logits, with the modules inside of them.
        around: paths of the modules that hold the blocks or the head; they determine which states there are.
        parts: paths of the modules at which attention part and MLP part are separated.
        copied: whether the readout holds copies of the modules of `ends`, on another device or in another form.
        fixed: phrases with values; if a value has changed, the readings would be those of another model.
        watched: phrases with values; if a value has changed, only a pass can tell whether the readings are still right.
        numbers: phrases with values, as in `watched`. The pass is not repeated while they keep the values that it
            found. It is repeated for hooks and forwards, which can act differently each time.
    """

    stack: str
    ends: tuple[str, ...]
    around: tuple[str, ...]
    parts: tuple[str, ...]
    copied: bool
    fixed: dict[str, object]
    watched: dict[str, object]
    numbers: dict[str, object]
