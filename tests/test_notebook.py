"""What notebooks show: a run and a model in five lines, and signs of theirs as they are."""

import re
from html import unescape

import numpy as np

from layerlens.notebook import Framed
from tests.conftest import tiny
from tests.made_up_run import write_run


def test_a_run_in_five_lines(tmp_path):
    entropy = np.ones((4, 6))
    generated = [False, True, True, True]
    run = write_run(tmp_path / "a<b>", {"x": {"entropy": entropy, "is_generated": generated}}, strategy="valley")
    lines = repr(run).splitlines()
    assert len(lines) == 5
    assert lines[1].strip() == "made up (made_up), 6 layers"
    assert lines[3].strip() == "4 positions, 3 of them generated"
    assert lines[4].strip() == "strategy valley, mode generate"
    assert "<b>" not in run._repr_html_().replace("<b>Run", "")
    assert unescape(re.sub(r"<[^>]*>", "", run._repr_html_())) == "".join(line.strip() for line in lines)


def test_an_unfinished_run_says_so(tmp_path):
    run = write_run(tmp_path / "run", {"x": {"entropy": np.ones((1, 4))}}, finish=False)
    assert "1 of 1 prompts of made up" in repr(run)


def test_a_model_in_five_lines():
    lines = repr(tiny("gemma2")).splitlines()
    assert len(lines) == 5
    assert lines[1].strip() == "4 layers: 2 sliding, 2 full"
    assert lines[4].strip() == "readout with soft-cap, tied to the embeddings"
    assert repr(tiny("llama")).endswith("readout linear, apart from the embeddings")
    assert tiny("llama")._repr_html_().count("<div>") == 4


def test_a_framed_page_cannot_break_out_of_its_frame():
    shown = Framed("<script>\"</iframe>&'</script>", 300)._repr_html_()
    assert shown.count("<") == 2
    [inside] = re.findall(r'srcdoc="([^"]*)"', shown)
    assert unescape(inside) == "<script>\"</iframe>&'</script>"
    assert "allow-same-origin" not in shown
    assert "height:300px" in shown
