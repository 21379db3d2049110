"""The README is short, and its notebook code runs as it stands."""

from pathlib import Path

import layerlens as ll

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short_and_its_files_exist():
    assert len(README.splitlines()) <= 150
    for path in ("figures/smollm2-sample/figure2.png", "CHANGELOG.md", "CONTRIBUTING.md", "scripts/demo", "LICENSE"):
        assert path.split("/")[-1] in README or path == "LICENSE"
        assert (ROOT / path).exists()


def test_it_names_every_recorded_column_and_family():
    from layerlens.models import tiny_names
    from layerlens.records import TOKENS

    for column in TOKENS:
        assert f"`{column.name}`" in README
    for name in tiny_names():
        assert name.removesuffix("_text") in README


def test_the_notebook_code_prints_the_tables_that_are_shown(smollm2, tmp_path, monkeypatch, capsys):
    """Of fewer tokens: the same tables with the same columns."""
    code = README.split("```python\n")[1].split("```")[0]
    assert code.count("max_new_tokens=64") == 1
    code = code.replace("max_new_tokens=64", "max_new_tokens=12")
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("ll.load(", "load("), "README.md", "exec"), {"load": lambda name: smollm2})
    printed = capsys.readouterr().out
    shown = [line[4:] for line in README.split("```\n")[1].split("## ")[0].splitlines() if line.startswith("    ")]
    headers = [line for line in shown if "layer" in line or "phase" in line or "share" in line]
    assert len(headers) == 3
    for header in headers:
        assert header.split() in [line.split() for line in printed.splitlines()]
    assert ll.open_run(tmp_path / "runs" / "notebook").is_complete
