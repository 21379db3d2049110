"""One headless browser for each file of tests."""

import pytest

from tests.report.browser import Browser


@pytest.fixture(scope="module")
def browser():
    started = Browser()
    yield started
    started.close()
