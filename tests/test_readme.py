"""The README is short, and its first code prints what it shows."""

import re
from pathlib import Path

import layerlens as ll

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 150
    targets = re.findall(r'\]\(([^)#]+)[^)]*\)|src="([^"]+)"', README)
    assert len(targets) > 10
    for target in map("".join, targets):
        assert (ROOT / target).exists(), target


def test_the_first_code_prints_the_tables_that_are_shown(smollm2, tmp_path, monkeypatch, capsys):
    code = README.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("ll.load(", "load("), "README.md", "exec"), {"load": lambda name: smollm2})
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    after = README.split("```python\n")[1].split("```\n")[1].split("## ")[0]
    shown = [line.split() for line in after.splitlines() if line.startswith("    ")]
    assert len(shown) == 8  # two tables
    assert shown == printed[: len(shown)] == printed
    assert ll.open_run(tmp_path / "runs" / "sample").is_complete
