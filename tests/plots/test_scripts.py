"""Each script of analyses/ makes its figure or table from a run directory, and says in one sentence what it cannot."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.made_up_run import write_run

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {
    "figure1.py": ("figure1", ("png", "pdf", "csv")),
    "figure7.py": ("figure7", ("png", "pdf", "csv")),
    "table6_1.py": ("table6.1", ("csv", "md", "tex")),
    "table8.py": ("table8", ("csv", "md", "tex")),
}


def call(name, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "analyses" / name), *map(str, arguments)], capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Tokens of which every fourth is substituted at the layer before the last."""
    entropy = np.tile([3.0, 2.0, 1.5, 1.0, 2.0], (12, 1))
    top = np.full((12, 5), 1)
    top[::4, -2] = 2
    measures = {"entropy": entropy, "top_token_id": top}
    words = {1: " house", 2: " the"} | {number: f"w{number}" for number in (0, *range(3, 13))}
    return write_run(tmp_path_factory.mktemp("scripts") / "run", {"a": measures, "b": measures}, words=words)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_makes_its_files(name, run, tmp_path):
    done = call(name, run.path, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    stem, suffixes = SCRIPTS[name]
    paths = [tmp_path / "out" / f"{stem}.{suffix}" for suffix in suffixes]
    assert done.stdout.split() == [str(path) for path in paths]
    assert all(path.stat().st_size for path in paths)


@pytest.mark.parametrize("name", [*SCRIPTS, "table5.py"])
def test_what_a_run_lacks_is_one_sentence(name, tmp_path):
    measures = {"entropy": np.ones((2, 5)), "is_generated": [False, False]}
    run = write_run(tmp_path / "given", {"a": measures})
    done = call(name, run.path, tmp_path / "out")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f"{name}: error: " in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()
