"""Reading, analysing and drawing a run need no torch."""

import subprocess
import sys

import pytest

CHECK = "import sys, {module}; sys.exit('torch' in sys.modules)"


def imports_torch(module: str) -> bool:
    """Whether a fresh interpreter that imports the module ends up with torch."""
    done = subprocess.run([sys.executable, "-c", CHECK.format(module=module)], capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    assert not done.stderr, done.stderr
    return done.returncode == 1


@pytest.mark.parametrize(
    "module",
    [
        "layerlens.run",
        "layerlens.analysis",
        "layerlens.plots",
        "layerlens.records",
        "layerlens.report",
        "layerlens.tables",
        "layerlens.analysis.theory",
        "layerlens.evaluation.scoring",
        "layerlens.records.answers",
    ],
)
def test_no_torch_is_imported(module):
    assert not imports_torch(module)


@pytest.mark.parametrize("module", ["torch", "layerlens.run, transformers.modeling_utils"])
def test_the_check_can_fail(module):
    assert imports_torch(module)


def test_plots_start_no_window_system():
    check = "import sys, layerlens.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
