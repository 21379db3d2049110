"""Reading, analysing and drawing a run need no torch."""

import subprocess
import sys

CHECK = """
import importlib, sys
for module in sys.argv[1:]:
    importlib.import_module(module)
    if "torch" in sys.modules:
        print(module)
        break
"""


def first_with_torch(*modules: str) -> str:
    """The first of the modules after whose import, in a fresh interpreter and this order, torch is there; or none."""
    done = subprocess.run([sys.executable, "-c", CHECK, *modules], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return done.stdout.strip()


def test_no_torch_is_imported():
    modules = (
        "layerlens.run",
        "layerlens.analysis",
        "layerlens.plots",
        "layerlens.records",
        "layerlens.report",
        "layerlens.tables",
        "layerlens.analysis.theory",
        "layerlens.evaluation.scoring",
        "layerlens.records.evaluation",
    )
    assert first_with_torch(*modules) == ""


def test_the_check_can_fail():
    modules = ("layerlens.run", "transformers.modeling_utils", "layerlens.analysis")
    assert first_with_torch(*modules) == "transformers.modeling_utils"


def test_plots_start_no_window_system():
    check = "import sys, layerlens.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
