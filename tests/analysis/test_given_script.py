"""analyses/given.py: surprise and entropy of given texts, against means by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.made_up_run import write_run

SCRIPT = Path(__file__).resolve().parents[2] / "analyses" / "given.py"
FIRST = 3  # tokens that both texts begin with


@pytest.fixture
def texts(tmp_path):
    random, prompts = np.random.default_rng(0), {}
    for name, length in (("a", 9), ("b", 14)):
        ids = np.arange(length, dtype=np.int32) + (np.arange(length) >= FIRST) * (100 if name == "a" else 200)
        entropy, log_prob = random.random((2, length, 5)).astype(np.float32)
        next_ids = [*ids[1:].tolist(), None]
        log_prob[-1] = np.nan
        ranks = np.zeros((length, 5), np.int32)
        prompts[name] = {"entropy": entropy, "next_log_prob": -log_prob, "token_id": ids.astype(np.int32)}
        prompts[name] |= {"next_token_id": next_ids, "next_rank": ranks, "is_generated": np.zeros(length, bool)}
    return write_run(tmp_path / "run", prompts), prompts


def test_means_are_those_by_hand(script, texts, tmp_path):
    run, prompts = texts
    done = script(SCRIPT, run.path, tmp_path)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "given.csv").set_index("quantity")
    entropy = np.concatenate([one["entropy"][FIRST:-1] for one in prompts.values()])
    surprise = -np.concatenate([one["next_log_prob"][FIRST:-1] for one in prompts.values()])
    for layer, place in (("L-1", -2), ("L", -1)):
        assert table.loc[f"entropy, {layer}", "measured"] == pytest.approx(entropy[:, place].mean(), rel=1e-4)
        measured = table.loc[f"surprise at the next token, {layer}", "measured"]
        assert measured == pytest.approx(surprise[:, place].mean(), rel=1e-4)
        less = table.loc[f"surprise less entropy, {layer}", "measured"]
        assert less == pytest.approx((surprise - entropy)[:, place].mean(), rel=1e-3, abs=1e-5)
    rises, worse = entropy[:, -1] > entropy[:, -2], surprise[:, -1] - surprise[:, -2]
    assert table.loc["perturbed tokens, given texts", "measured"] == pytest.approx(100 * rises.mean(), rel=1e-4)
    assert table.loc["perturbed tokens, given texts", "n_tokens"] == len(rises) == 9 + 14 - 2 * FIRST - 2
    for group, among in (("perturbed", rises), ("unperturbed", ~rises)):
        found = table.loc[f"next token less likely at L than at L-1, {group}", "measured"]
        assert found == pytest.approx(100 * (worse[among] > 0).mean(), rel=1e-4)
        change = table.loc[f"change of surprise at L, {group}", "measured"]
        assert change == pytest.approx(worse[among].mean(), rel=1e-3, abs=1e-5)
