"""Columns that a run has where they were asked for: written, read, and missed."""

import numpy as np
import pyarrow.parquet as pq
import pytest

import layerlens as ll
from layerlens.records.schema import ON_REQUEST
from tests.made_up_run import write_run
from tests.refusals import refused


def planted(n_tokens, n_layers=3, n_tops=2, seed=0):
    rng = np.random.default_rng(seed)
    shape = (n_tokens, n_layers)
    given = {
        "entropy": rng.random(shape),
        "js_from_last": rng.random(shape) * 0.6,
        "next_log_prob": -rng.random(shape),
        "next_rank": rng.integers(0, 900, shape),
        "top_k_token_ids": rng.integers(0, 900, (*shape, n_tops)),
        "top_k_probs": rng.random((*shape, n_tops)),
        "half_entropy": rng.random(shape),
        "half_top_token_id": rng.integers(0, 900, shape),
    }
    given["next_log_prob"][-1] = np.nan
    given["next_rank"][-1] = -1
    given["half_entropy"][:, 0] = np.nan
    given["half_top_token_id"][:, 0] = -1
    return given


def test_what_was_asked_for_comes_back_value_by_value(tmp_path):
    prompts = {"a": planted(4), "b": planted(1, seed=1)}
    run = write_run(tmp_path / "run", prompts)
    for name in prompts["a"]:
        expected = np.concatenate([prompts["a"][name], prompts["b"][name]])
        np.testing.assert_allclose(run.layers(name), expected, rtol=1e-6, equal_nan=True)
    part = pq.read_table(tmp_path / "run/tokens/part-00000.parquet")
    assert part.column("next_rank")[-1].as_py() == [None] * 3
    assert part.column("next_log_prob")[-1].as_py() == [None] * 3
    assert part.column("half_entropy")[0].as_py()[0] is None
    assert part.column("half_top_token_id")[0].as_py()[0] is None
    assert [len(layer) for layer in part.column("top_k_token_ids")[0].as_py()] == [2, 2, 2]


@pytest.mark.parametrize("option", ON_REQUEST)
def test_what_was_not_asked_for_is_said_with_the_option_that_asks(option, tmp_path):
    run = write_run(tmp_path / "run", {"a": {"entropy": np.ones((2, 3))}})
    for column in ON_REQUEST[option]:
        with refused(ll.RunError, given=run.path, advice=option):
            run.layers(column.name)
        assert column.name not in run.tokens
