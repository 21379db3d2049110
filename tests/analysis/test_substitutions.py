"""Substitutions are the valley's, replacements the selected layer's: one word for each event."""

import collections

import numpy as np
import pandas as pd
import pytest

import layerlens as ll
from tests.made_up_run import write_run
from tests.refusals import refused

TOP = np.array([[7, 7, 7], [7, 8, 9], [7, 7, 9], [8, 7, 7]], dtype=np.int32)
ENTROPY = np.array([[1, 2, 3], [5, 4, 6], [9, 8, 7], [1, 2, 3]], dtype=float)  # valleys at layers 1, 2, 3 and 1
GIVEN = {
    "entropy": ENTROPY,
    "top_token_id": TOP,
    "selected_layer": np.array([3, 1, 2, 3], dtype=np.int16),
    "next_token_id": pd.array([7, 8, 9, 6], dtype="Int32"),
}


def test_the_two_events_are_told_apart(tmp_path):
    run = write_run(tmp_path / "run", {"b": GIVEN, "a": GIVEN}, finish_reasons={"b": "non_finite"})
    found = run.substitutions()
    assert found.to_dict("list") == {
        "prompt_id": ["a", "a"],
        "position": [6, 8],
        "last_token_id": [9, 7],
        "valley_token_id": [8, 8],
        "emitted_token_id": [8, 6],
        "valley_layer": [2, 1],
        "selected_layer": [1, 3],
        "entropy_valley": [4.0, 1.0],
        "entropy_last": [6.0, 3.0],
    }
    assert (found.attrs["n_tokens"], found.attrs["n_prompts_left_out"]) == (4, 1)
    replaced = run.replacements()
    assert replaced[["position", "selected_layer", "selected_token_id", "last_token_id"]].to_numpy().tolist() == [
        [6, 1, 7, 9],
        [7, 2, 7, 9],
    ]


@pytest.mark.parametrize(
    "strategy",
    [ll.Last(), ll.Valley(window=3), ll.Valley(window=3, p=0.4), ll.Valley(window=3, shift=-1), ll.Fixed(2)],
)
def test_what_is_listed_is_what_pairs_and_rates_count(tiny_llama, tmp_path, strategy):
    prompts = ["What is 1 and 1?", "Why is the sky blue?", "Say hello."]
    run = ll.trace(
        tiny_llama, prompts, strategy=strategy, window=3, max_new_tokens=24, positions="all", progress=False,
        out=tmp_path / "run",
    )  # fmt: skip
    listed, pairs = run.substitutions(), run.substitution_pairs(k=1000)
    counted = collections.Counter(zip(listed["last_token_id"], listed["valley_token_id"], strict=True))
    assert counted == {
        (row.standard_token_id, row.confident_token_id): row.count_
        for row in pairs.rename(columns={"count": "count_"}).itertuples()
    }
    rates = run.valley_statistics().set_index("statistic")["value"]
    assert len(listed) / listed.attrs["n_tokens"] == pytest.approx(rates["substitution_rate"])
    replaced = run.replacements()
    at = run.positions["selected_layer"].to_numpy() - 1
    top = run.layers("top_token_id")
    assert len(replaced) == int((top[np.arange(len(at)), at] != top[:, -1]).sum())
    if strategy == ll.Valley(window=3):
        assert replaced["position"].tolist() == listed["position"].tolist()
    else:
        assert len(replaced) != len(listed)


def test_given_text_has_no_substitutions(tiny_llama, tmp_path):
    run = ll.trace(tiny_llama, ["a text"], max_new_tokens=0, chat_template=False, out=tmp_path / "run", progress=False)
    assert run.replacements().empty
    with refused(ll.RunError, problem="generated token"):
        run.substitutions()
