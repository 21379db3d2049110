"""Table 5 from records alone: what walks of known depth cost."""

import math

import numpy as np
import pytest

import layerlens as ll
from layerlens.analysis.overhead import overhead
from layerlens.analysis.reported import reported, reported_value
from tests.conftest import tiny
from tests.made_up_run import write_run
from tests.refusals import refused

COSTS = {"forward": 1000, "unembedding": 70}


def entropies(depths, n_layers=6):
    """Curves whose walk back goes as deep as asked."""
    return np.array([[9.0] * (n_layers - 1 - d) + [1.0] + [1.0 + k for k in range(1, d + 1)] for d in depths])


def costed(run, costs=COSTS):
    run.manifest["model"]["multiply_adds"] = costs
    return run


def test_costs_follow_from_the_depths(tmp_path):
    depths = {"a": [0, 2, 1], "b": [3, 0], "c": [0, 0, 0, 1]}
    run = costed(write_run(tmp_path, {name: {"entropy": entropies(d)} for name, d in depths.items()}, window=4))
    table = overhead(run)
    mean = sum(map(sum, depths.values())) / 9
    assert table.attrs["mean_depth"] == pytest.approx(mean)
    read = sum(min(1 + d, 3) for one in depths.values() for d in one) / 9  # the walk of 3 is at the window's end
    expected = {"forward": 1000, "unembedding": 70, "worst": 3 * 70, "lazy": read * 70, "depth": mean * 70}
    assert dict(zip(table["name"], table["mflops"], strict=True)) == pytest.approx(
        {name: 2 * count / 1e6 for name, count in expected.items()}
    )
    assert table.set_index("name")["percent_of_forward"].to_dict() == pytest.approx(
        {name: 100 * count / 1000 for name, count in expected.items()}
    )
    assert table.set_index("name")["percent_of_last"].to_dict() == pytest.approx(
        {name: 100 * count / (1000 + expected["unembedding"]) for name, count in expected.items()}
    )
    bounded = table.dropna(subset="mflops_low")
    assert bounded["name"].tolist() == ["lazy", "depth"]
    assert (bounded["mflops_low"] < bounded["mflops"]).all()
    assert (bounded["mflops"] < bounded["mflops_high"]).all()
    assert table["n_tokens"].eq(9).all()


def test_a_prompt_without_end_is_not_counted_twice_and_one_prompt_has_no_interval(tmp_path):
    run = costed(write_run(tmp_path, {"a": {"entropy": entropies([0, 2, 1]), "is_generated": [False, True, True]}}))
    table = overhead(run)
    assert table.attrs["mean_depth"] == 1.5
    assert table["mflops_low"].isna().all()


def test_what_a_run_must_have(tmp_path):
    run = write_run(tmp_path / "old", {"a": {"entropy": entropies([1])}})
    with refused(ll.RunError, advice="this version"):
        overhead(run)
    run = costed(write_run(tmp_path / "given", {"a": {"entropy": entropies([1]), "is_generated": [False]}}))
    with refused(ll.RunError, advice="max_new_tokens"):
        overhead(run)


def test_a_trace_says_what_its_model_costs(run_of):
    """The unembedding is d x V; all other matrices are what a token is multiplied with on its way."""
    model = tiny("llama")
    run = run_of(model, ["Hello"], max_new_tokens=3)
    linear = sum(p.numel() for name, p in model.hf.named_parameters() if p.ndim == 2 and "embed" not in name)
    head = model.d_model * model.n_vocab
    assert run.manifest["model"]["multiply_adds"]["unembedding"] == head
    assert (
        run.manifest["model"]["multiply_adds"]["forward"]
        == linear - ("lm_head.weight" in dict(model.hf.named_parameters())) * head
    )
    assert overhead(run)["n_tokens"].eq(3).all()


def test_reported_numbers():
    assert len(reported("S6.1")) == 20
    assert reported_value("5", condition="full forward pass", quantity="MFLOPs per token") == 5212
    assert math.isnan(reported_value("5", condition="full forward pass", quantity="metres"))
    assert len(reported("11")) == 0
