"""JSON from files that somebody else may have written."""

import json
from collections.abc import Callable
from typing import Any


def json_of(text: str | bytes, of_pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text, each object made by `of_pairs`; ValueError also where it is nested too deep."""
    try:
        return json.loads(text, object_pairs_hook=of_pairs)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
