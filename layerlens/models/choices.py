"""The names that options of `load` can have. No torch is needed, so that a misspelt one is refused at once."""

from collections.abc import Sequence

from layerlens.errors import OptionError, did_you_mean

BACKENDS = ("transformers", "transformer-lens", "nnsight", "nnsight-remote", "nnsight-simulated", "vllm")
DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
QUANTIZED = ("4bit", "8bit")
"""Numbers of bits that bitsandbytes makes of weights while they are loaded."""

_DEVICES = ("cpu", "cuda", "mps", "xpu")


def refuse_unknown(option: str, given: str, known: Sequence[str], also: str = "") -> None:
    """OptionError where the option has none of the known values.

    Args:
        option: as Python calls it.
        given: its value.
        known: the values that it can have.
        also: what else can be given, as the end of a sentence.
    """
    if given not in known:
        advice = did_you_mean(given, known, f"give {', '.join(known[:-1])} or {known[-1]}{also}")
        raise OptionError.about(option, given, "is unknown", advice)


def refuse_misspelt_device(device: str) -> None:
    """OptionError where a name is no device, but like that of one; torch has more devices than can be listed here."""
    kind, colon, number = device.partition(":")
    if kind in _DEVICES and (number.isdecimal() or not colon):
        return
    known = [*_DEVICES, *(f"{one}:{device[-1]}" for one in _DEVICES if device[-1:].isdecimal())]
    if advice := did_you_mean("cuda" if kind == "gpu" else device, known, ""):
        raise OptionError.about("device", device, "is unknown", advice)
