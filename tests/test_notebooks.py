"""The notebooks run from top to bottom, and show what they say."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import needs_smollm2
from tests.thorough import thorough

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_they_are_shipped_with_outputs(path):
    """`python scripts/notebooks` makes them; they name nothing of the machine that ran them."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(cell.outputs) for cell in cells) >= len(cells) - 1
    assert str(Path.home()) not in path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Executes a notebook in an empty directory, with fewer tokens than it says where some are given; what its cells
    displayed, as MIME bundles, and printed."""
    needs_smollm2()

    def execute(name, fewer):
        notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
        for said, n_tokens in fewer.items():
            (cell,) = [cell for cell in notebook.cells if said in cell.source]
            cell.source = cell.source.replace(said, re.sub(r"\d+", str(n_tokens), said))
        place = tmp_path_factory.mktemp("notebook")
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": place}})
        client.execute(env=environment)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        assert not [output for output in outputs if output["output_type"] == "error"]
        return [output["data"] for output in outputs if "data" in output], [
            output["text"] for output in outputs if output.get("name") == "stdout"
        ]

    return execute


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_phases(shown):
    displayed, _ = shown("phases.ipynb", {"max_new_tokens=32": 8})
    pictures = [data for data in displayed if "image/png" in data]
    assert len(pictures) == 3
    texts = [data["text/plain"] for data in displayed]
    assert any(text.startswith("Model smollm2") and len(text.splitlines()) == 5 for text in texts)
    assert any(text.startswith("Run runs/phases") and len(text.splitlines()) == 5 for text in texts)
    assert "<iframe sandbox" in displayed[-1]["text/html"]


@thorough
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_decoding(shown):
    displayed, printed = shown("decoding.ipynb", {"max_new_tokens=40": 16, '"max_new_tokens": 32': 8})
    last, valley = printed[0].strip().split("\n\n", 1)
    assert last != valley
    layers = next(data["text/plain"] for data in displayed if data["text/plain"].startswith("selected_layer"))
    assert len(layers.splitlines()) > 3, "the drop-in selected several layers"
    assert any("strategy valley (window 10" in data["text/plain"] for data in displayed)
