"""What an error that a user can mend says in its fields. Its sentences are in test_sentences.py."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from layerlens.errors import LayerlensError

ANYTHING = object()


@contextmanager
def refused(
    kind: type[LayerlensError] = LayerlensError,
    option: str | None = None,
    given: object = ANYTHING,
    *,
    problem: str = "",
    advice: str = "",
) -> Iterator[None]:
    """Inside, an error of that kind is raised, about that option and value, with these words in what it says."""
    with pytest.raises(kind) as caught:
        yield
    error = caught.value
    assert error.option == option, error
    assert given is ANYTHING or repr(error.given) == repr(given), error  # a NaN is a NaN, and True is not 1
    assert problem in error.problem
    assert advice in error.advice
    assert error.advice, f"what is to be done? {error}"
    assert "\n" not in str(error)
