"""Where the real data lies, and what a message to a user has to look like."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from layerlens.errors import LayerlensError, PromptError

REAL = Path(__file__).resolve().parents[3] / "shared" / "datasets"


@pytest.fixture
def real_file() -> Callable[[str], Path]:
    """name in shared/datasets -> path; the test is skipped where the real data is not beside the checkout."""

    def find(name: str) -> Path:
        if not (REAL / name).is_file():
            pytest.skip(f"the real data is not here: no {name} in a folder shared/datasets beside the checkout")
        return REAL / name

    return find


@pytest.fixture
def refused():
    """A context in which a user error has to be raised, in one line that holds all the given pieces."""

    @contextmanager
    def context(*pieces: object, error: type[LayerlensError] = PromptError, **fields: object) -> Iterator[None]:
        with pytest.raises(error) as caught:
            yield
        message = str(caught.value)
        assert type(caught.value) is error
        assert [piece for piece in map(str, pieces) if piece not in message] == [], message
        assert {name: getattr(caught.value, name) for name in fields} == fields
        assert "\n" not in message, "one sentence on one line"
        assert caught.value.problem, "what is wrong"
        assert caught.value.advice, "what to do"

    return context
