"""What only `scripts/test-hard` tries, because it takes long and `scripts/test` has one like it."""

import itertools
import os
from collections.abc import Iterable
from typing import Any

import pytest

IS_HARD = os.environ.get("LAYERLENS_HARD") == "1"
thorough = pytest.mark.thorough
"""Marks a test that `scripts/test` leaves out."""


def some(values: Iterable[Any], n: int) -> list[Any]:
    """Values to parametrize with: n that lie apart, and the others marked as thorough."""
    many = list(values)
    kept = {round(place * (len(many) - 1) / max(1, n - 1)) for place in range(n)}
    return [value if place in kept else _left_out(value) for place, value in enumerate(many)]


def combined(*values: Iterable[Any], n: int) -> list[Any]:
    """The same for every combination of values of several arguments."""
    return some([pytest.param(*one) for one in itertools.product(*values)], n)


def _left_out(value: Any) -> Any:
    if hasattr(value, "marks"):  # of pytest.param
        return pytest.param(*value.values, marks=(*value.marks, thorough), id=value.id)
    return pytest.param(value, marks=thorough)
