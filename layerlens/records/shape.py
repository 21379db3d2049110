"""What the entries of a manifest are, so that a damaged or edited one is told where it is read, and not where it fails.

A shape is one of

    str, bool                texts and truth values
    Whole(low), Number(low)  numbers from `low`; a Whole fits into 64 bits, a Number is finite
    None                     nothing
    {"name": shape, ...}     a mapping that has these entries, and perhaps others: "name?" may be missing, and "*" is
                             the shape of every entry that is not named
    [shape]                  a list of any length
    (shape, shape, ...)      any one of them
    ANYTHING
"""

import math
from dataclasses import dataclass
from typing import Any

ANYTHING = object()
_LARGEST = 2**63 - 1


@dataclass(frozen=True)
class Whole:
    """A whole number from `low` to `high`."""

    low: int = 0
    high: int = _LARGEST


@dataclass(frozen=True)
class Number:
    """A finite number from `low`."""

    low: float = -math.inf


_TEXT_OR_NONE = (str, None)
_MODEL = {
    "source": str,
    "family?": str,
    "n_layers": Whole(1, 100_000),
    "n_vocab": Whole(1),
    "d_model?": Whole(1),
    **dict.fromkeys(("revision?", "fingerprint?", "quantization?", "modules?"), _TEXT_OR_NONE),
    **dict.fromkeys(("dtype?", "device?", "backend?", "attention?"), _TEXT_OR_NONE),
    "hooks?": [str],
    "layer_kinds?": [str],
    "mlp_kinds?": [str],
    "multiply_adds?": ({"forward": Whole(), "unembedding": Whole()}, None),
}
_DATASET = {
    "name": str,
    "rows": Whole(),
    **dict.fromkeys(("config?", "split?", "revision?", "sha256?", "prompts_sha256?", "shard?"), _TEXT_OR_NONE),
    **dict.fromkeys(("ids_sha256?", "items_sha256?"), _TEXT_OR_NONE),
    "all_rows?": (Whole(), None),
}
_TOTALS = {
    **dict.fromkeys(("prompts?", "positions?", "generated_tokens?", "non_finite_prompts?"), Whole()),
    **dict.fromkeys(("seconds?", "session_seconds?"), Number(0)),
    "resumed?": bool,
    "*": (Number(), bool, str),
}
_CIRCUMSTANCES = {
    "created": str,
    "command": [str],
    "hardware": {"threads?": Whole(), "engine_options?": {}, "*": (str, Number(), None)},
}

RUN = {
    **_CIRCUMSTANCES,
    "versions?": {"*": _TEXT_OR_NONE},
    "seed": Whole(-_LARGEST),
    "model": _MODEL,
    "dataset": _DATASET,
    "strategy": {"name": str},
    "strategy_code?": _TEXT_OR_NONE,
    "lens?": {"kind": str, "source?": _TEXT_OR_NONE, "sha256?": _TEXT_OR_NONE},
    "mode": str,
    "options": {
        **dict.fromkeys(("kl?", "js?", "targets?", "sublayers?", "confidence?"), bool),
        "top?": Whole(),
        "batch_size?": Whole(1),
        "max_new_tokens?": (Whole(), None),
        "temperature?": (Number(0), None),
    },
    "window": Whole(1),
    "batches": [[str]],
    "padding?": str,
    "chat_template_sha256?": _TEXT_OR_NONE,
    "totals": (_TOTALS, None),
    "merged_from?": [{**_CIRCUMSTANCES, "totals": _TOTALS}],
}
"""The manifest of a run, beside its "format"."""

_CONFIG = {"max_tokens?": Whole(1), "temperature?": Number(0), "top_p?": Number(0), "stop_seqs?": [str]}
_TASK = {"items": [str], "items_sha256": str, "best": Number(), "config": _CONFIG}
_ARM = {"strategy": str, "p?": Number(0)}

EVALUATION = {
    **_CIRCUMSTANCES,
    "seed": Whole(-_LARGEST),
    "model": {"source": str},
    "lens?": {"kind": str},
    "options": {"epochs": Whole(1)},
    "evaluation": {"asked": [[str]], "tasks": {"*": _TASK}, "arms": {"*": _ARM}, "judged?": {}, "code?": {}},
    "totals": (_TOTALS, None),
}
"""The manifest of an evaluation, beside its "format"."""


def misfit(value: Any, shape: Any, name: str = "") -> str | None:
    """The first place where a value does not have its shape, as "model.n_layers is no whole number from 1"."""
    if shape is ANYTHING:
        return None
    if isinstance(shape, dict):
        return _of_mapping(value, shape, name)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{name} is no list"
        places = (misfit(one, shape[0], f"{name}[{place}]") for place, one in enumerate(value))
        return next((found for found in places if found is not None), None)
    if isinstance(shape, tuple):
        found = [misfit(value, one, name) for one in shape]
        return None if None in found else found[0]
    return None if _fits(value, shape) else f"{name} is {_expected(shape)}"


def _of_mapping(value: Any, shape: dict[str, Any], name: str) -> str | None:
    if not isinstance(value, dict):
        return f"{name} is no mapping"
    named = {key.removesuffix("?"): key for key in shape if key != "*"}
    for called, key in named.items():
        if called == key and called not in value:
            return f"{_path(name, called)} is missing"
    for called, one in value.items():
        inner = shape[named[called]] if called in named else shape.get("*", ANYTHING)
        found = misfit(one, inner, _path(name, called))
        if found is not None:
            return found
    return None


def _path(name: str, called: str) -> str:
    return f"{name}.{called}" if name else called


def _fits(value: Any, shape: Any) -> bool:
    if shape is None:
        return value is None
    if isinstance(shape, Whole):
        return isinstance(value, int) and not isinstance(value, bool) and shape.low <= value <= shape.high
    if isinstance(shape, Number):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and abs(value) < 2.0**63 and value >= shape.low
    return isinstance(value, shape)


def _expected(shape: Any) -> str:
    if isinstance(shape, Whole):
        return f"no whole number from {shape.low} to {shape.high}"
    if isinstance(shape, Number):
        return "no finite number" if shape.low == -math.inf else f"no number from {shape.low:g}"
    return {str: "no text", bool: "neither true nor false", None: "not null"}[shape]
