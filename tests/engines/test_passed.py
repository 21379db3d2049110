"""Whether the tests inside vLLM need to run again is told from the files that they depend on."""

import shutil
from pathlib import Path

import pytest

from tests.engines.vllm import passed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch):
    for folder in ("layerlens", "tests/engines", "scripts"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tests" / "refusals.py", tmp_path / "tests")
    here = tmp_path / "tests" / "engines" / "vllm"
    monkeypatch.setattr(passed, "ROOT", tmp_path)
    monkeypatch.setattr(passed, "PASSED", here / "passed.txt")
    monkeypatch.setattr(passed, "SCRIPT", tmp_path / "scripts" / "test-vllm")
    monkeypatch.setattr(passed, "__file__", str(here / "passed.py"))
    monkeypatch.setattr(passed.sys, "argv", ["passed.py", "--write"])
    assert passed.main() == 0
    monkeypatch.setattr(passed.sys, "argv", ["passed.py"])
    return tmp_path


def test_nothing_is_run_where_nothing_has_changed(project):
    assert passed.main() == 0


@pytest.mark.parametrize(
    "name",
    [
        "layerlens/engines/vllm/serving.py",
        "layerlens/decode/strategies.py",
        "layerlens/formulas.py",
        "layerlens/native/loops.py",
        "tests/engines/vllm/test_steps.py",
        "tests/refusals.py",
        "scripts/test-vllm",
    ],
)
def test_a_change_of_the_plugin_or_of_what_it_imports_is_named(project, name, capsys):
    with (project / name).open("a", encoding="utf-8") as file:
        file.write("\n")
    assert passed.main() == 1
    assert name in capsys.readouterr().out


@pytest.mark.parametrize("name", ["layerlens/plots/grids.py", "layerlens/cli/trace.py"])
def test_other_changes_do_not_matter(project, name):
    with (project / name).open("a", encoding="utf-8") as file:
        file.write("\n")
    assert passed.main() == 0


def test_a_module_that_is_gone_or_new_is_a_change(project):
    (project / "layerlens" / "engines" / "vllm" / "http.py").unlink()
    assert passed.main() == 1
    (project / "layerlens" / "engines" / "vllm" / "more.py").write_text("", encoding="utf-8")
    assert passed.main() == 1


def test_what_is_committed_lists_files_that_exist():
    names = [line.split("  ", 1)[1] for line in passed.PASSED.read_text(encoding="utf-8").splitlines()]
    assert "layerlens/engines/vllm/serving.py" in names
    assert all((Path(ROOT) / name).is_file() for name in names)
