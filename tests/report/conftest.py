"""One headless browser for each file of tests."""

import pytest

from tests.report.browser import CHROMIUM, Browser


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium is installed: apt-get install chromium")
    started = Browser()
    yield started
    started.close()
