"""Tests in which inspect asks the items."""

import gc
from collections.abc import Callable
from functools import wraps
from typing import Any

import pytest

WARNINGS = (
    "ignore:The 'initial' parameter is deprecated:DeprecationWarning",  # inspect asks tenacity for it
    "ignore:Unclosed <MemoryObject:ResourceWarning",  # streams that inspect leaves to the garbage collector
    "ignore:.__get_validators__. is deprecated",  # what inspect_evals has
)


def needs_inspect(test: Callable[..., None]) -> Callable[..., None]:
    """The test, skipped where inspect is not installed, and without the warnings that inspect raises."""

    @wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        pytest.importorskip("inspect_evals", reason="needs the extra eval")
        try:
            test(*arguments, **named)
        finally:
            gc.collect()

    for warning in WARNINGS:
        run = pytest.mark.filterwarnings(warning)(run)
    return run
