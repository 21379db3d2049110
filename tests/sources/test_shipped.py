"""Files that come with layerlens are found in a checkout and where a wheel puts them."""

from pathlib import Path

from layerlens.errors import LayerlensError
from layerlens.sources import shipped
from tests.refusals import refused

DATA = Path(__file__).resolve().parents[2] / "data"


def test_a_file_is_found_where_a_wheel_puts_it(tmp_path, monkeypatch):
    installed = tmp_path / "site-packages" / "layerlens"
    (installed / "data").mkdir(parents=True)
    monkeypatch.setattr(shipped, "__file__", str(installed / "sources" / "shipped.py"))
    with refused(LayerlensError, given="sample.jsonl"):
        shipped.shipped_file("sample.jsonl")
    (installed / "data" / "sample.jsonl").write_text("here")
    assert shipped.shipped_file("sample.jsonl") == installed / "data" / "sample.jsonl"


def test_files_are_found_in_a_checkout():
    for name in ("sample.jsonl", "reported_values.csv"):
        assert shipped.shipped_file(name) == DATA / name
