"""Runs that are read piece by piece: the same tables as in one, whatever the order of prompts."""

import numpy as np
import pandas as pd
import pytest

from layerlens import analysis
from layerlens.errors import RunError
from layerlens.plots.clouds import clouds_table
from layerlens.run import Run, open_run
from tests.made_up_run import hybrid_curves, hybrid_kinds, planted, write_run
from tests.refusals import refused

TABLES = [
    "by_layer",
    "entropy_curves",
    "phases",
    "partition",
    "valleys",
    "valley_statistics",
    "by_entropy_band",
    "by_relative_position",
    "walk_depths",
    "agreement",
    "earliest_agreement",
    "dispensable",
    "kind_jumps",
    "substitutions",
    "substitution_pairs",
    "class_shares",
    "onset",
    "onset_by_layer",
    "settling",
    "settling_by_layer",
    "perturbation_parts",
    "parts_by_layer",
    "half_step_curves",
]


def unequal_prompts():
    """Of different lengths, in no order of their ids, with parts that some blocks do not have."""
    random = np.random.default_rng(1)
    prompts = planted(hybrid_curves(), n_prompts=9, n_tokens=60, noise=0.4)
    shuffled = {name: prompts[name] for name in random.permutation(sorted(prompts))}
    for place, measures in enumerate(shuffled.values()):
        measures["top_token_id"] = random.integers(0, 3, (60, 40)).astype(np.int32)
        measures["kl_last_to_layer"] = random.random((60, 40))
        measures["next_rank"] = random.integers(-1, 2, (60, 40)).astype(np.int32)
        measures["next_log_prob"] = -random.random((60, 40))
        measures["js_from_last"] = 0.69 * random.random((60, 40))
        measures["half_entropy"] = np.where(np.arange(40) == 3, np.nan, random.random((60, 40)))
        measures["half_top_token_id"] = np.zeros((60, 40), np.int32)
        measures["attn_ratio"] = np.array(measures["attn_ratio"] * np.ones((60, 1)))
        measures["attn_ratio"][:, 3] = np.nan
        for name, values in measures.items():
            measures[name] = np.asarray(values)[: 60 - 6 * place]
    return shuffled


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pieces") / "run"
    reasons = {"made-up-004": "non_finite"}
    forms = [" the", "cat", ",", " of", "x1", " valley"]
    words = {number: forms[number % len(forms)] for number in range(1000)}
    return write_run(folder, unequal_prompts(), layer_kinds=hybrid_kinds(), finish_reasons=reasons, words=words)


def in_pieces(run, monkeypatch, most_tokens=70):
    """The same run, as if it were a long one."""
    again, pieces_of = open_run(run.path), Run.pieces
    monkeypatch.setattr(Run, "pieces", lambda self: pieces_of(self, most_tokens))
    return again


@pytest.mark.parametrize("name", TABLES)
def test_pieces_give_the_tables_of_the_whole(run, name, monkeypatch):
    whole = getattr(analysis, name)(run)
    pieces = getattr(analysis, name)(in_pieces(run, monkeypatch))
    pd.testing.assert_frame_equal(whole, pieces, rtol=1e-9, atol=1e-12)
    assert whole.attrs == pieces.attrs
    assert whole.attrs["n_prompts_left_out"] == 1


@pytest.mark.parametrize(
    "table_of",
    [
        lambda run: analysis.class_shares(run, whole_words=True),
        lambda run: analysis.substituted_tokens(run, "confident"),
        lambda run: analysis.substitution_pairs(run, 2),
        clouds_table,
    ],
)
def test_pieces_give_the_tables_of_words_of_the_whole(run, table_of, monkeypatch):
    whole = table_of(run)
    pieces = table_of(in_pieces(run, monkeypatch))
    pd.testing.assert_frame_equal(whole, pieces, rtol=1e-9, atol=1e-12)
    assert whole.attrs == pieces.attrs


def test_a_piece_holds_whole_prompts_and_about_so_many_tokens(run):
    pieces = list(run.pieces(70))
    assert len(pieces) > 3
    lengths = [len(piece.positions) for piece in pieces]
    assert sum(lengths) == len(run.positions)
    assert max(lengths) < 70 + 60
    of_pieces = [set(piece.positions["prompt_id"]) for piece in pieces]
    assert sum(map(len, of_pieces)) == run.positions["prompt_id"].nunique()
    np.testing.assert_array_equal(np.concatenate([piece.layers("entropy") for piece in pieces]), run.layers("entropy"))
    assert list(run.pieces()) == [run]


def test_nothing_of_a_piece_is_kept(run, monkeypatch):
    again = in_pieces(run, monkeypatch)
    analysis.by_layer(again)
    assert not again._layers
    assert "positions" not in vars(again)


def test_pieces_without_a_token_that_counts_are_passed_over(tmp_path, monkeypatch):
    prompts = planted(hybrid_curves(), n_prompts=3, n_tokens=10)
    reasons = dict.fromkeys(["made-up-000", "made-up-002"], "non_finite")
    run = write_run(tmp_path / "run", prompts, finish_reasons=reasons)
    whole = analysis.by_layer(run)
    pd.testing.assert_frame_equal(whole, analysis.by_layer(in_pieces(run, monkeypatch, 10)), rtol=1e-9)
    monkeypatch.undo()
    run = write_run(tmp_path / "none", prompts, finish_reasons=dict.fromkeys(prompts, "non_finite"))
    with refused(RunError, "dtype", problem="infinite"):
        analysis.by_layer(in_pieces(run, monkeypatch, 10))
