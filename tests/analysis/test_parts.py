"""What attention and MLP do to the entropy, against a slow reading and planted halves."""

import math
import statistics

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from layerlens.analysis import half_step_curves, partition, parts_by_layer, perturbation_parts
from layerlens.analysis.parts import GROUPS, MEANS, RAISED_BY
from layerlens.errors import RunError
from tests.made_up_run import write_run
from tests.refusals import refused


def made_up(seed, lengths, n_layers=5, n_values=None, without=()):
    """Prompts of so many tokens with drawn entropies, of few values where ties are wanted; layers without halves."""
    random = np.random.default_rng(seed)
    prompts = {}
    for index, length in enumerate(lengths):
        drawn = random.gamma(1, 1, (2, length, n_layers))
        entropy, half = drawn if n_values is None else np.floor(drawn * n_values) / n_values
        half[:, [layer - 1 for layer in without]] = np.nan
        prompts[f"p{index}"] = with_halves(entropy, half)
    return prompts


def with_halves(entropy, half):
    """The columns of a prompt with these entropies after and within layers, [tokens, L] each."""
    half = np.array(half, np.float32)
    return {
        "entropy": np.array(entropy, np.float32),
        "half_entropy": half,
        "half_top_token_id": np.where(np.isnan(half), -1, 0).astype(np.int32),
    }


def slow_tokens(prompts):
    """(prompt, group, entropies, half entropies) of every token, as floats."""
    tokens = []
    for name, rows in prompts.items():
        for entropy, half in zip(rows["entropy"].tolist(), rows["half_entropy"].tolist(), strict=True):
            tokens.append((name, "perturbed" if entropy[-1] > entropy[-2] else "unperturbed", entropy, half))
    return tokens


def slow_part(entropy, half, layer):
    """The measures of one token at one layer, or None where the halves are not known."""
    if layer == 1 or math.isnan(half[layer - 1]):
        return None
    before, between, after = entropy[layer - 2], half[layer - 1], entropy[layer - 1]
    who = {(True, False): "attention_alone", (False, True): "mlp_alone", (True, True): "both"}
    raised = who.get((between > before, after > between), "neither")
    flags = {name: float(name == raised) for name in RAISED_BY}
    return {"change": after - before, "attention": between - before, "mlp": after - between} | flags


@pytest.mark.parametrize("n_values", [None, 2])
@pytest.mark.parametrize(("n_layers", "without"), [(2, ()), (5, (3,)), (6, (2, 5))])
def test_every_number_is_its_plain_reading(tmp_path, n_layers, without, n_values):
    prompts = made_up(5, [9, 4, 14, 6, 20, 7, 11, 8], n_layers, n_values, without)
    table = parts_by_layer(write_run(tmp_path / "run", prompts))
    assert table["group"].tolist() == [group for group in GROUPS for _ in range(n_layers)]
    for row in table.to_dict("records"):
        found = [
            (name, slow_part(entropy, half, row["layer"]))
            for name, group, entropy, half in slow_tokens(prompts)
            if row["group"] in ("all", group)
        ]
        found = [(name, part) for name, part in found if part is not None]
        assert row["n_tokens"] == len(found)
        assert row["n_prompts"] == len({name for name, _ in found})
        for measure in (*MEANS, *RAISED_BY):
            entries = [row[measure], row[f"{measure}_low"], row[f"{measure}_high"]]
            if not found:
                assert np.isnan(entries).all()
                continue
            assert row[measure] == pytest.approx(statistics.fmean(part[measure] for _, part in found), abs=1e-6)
            assert entries[1] <= entries[0] <= entries[2]


def test_planted_halves(tmp_path):
    """Two are perturbed by attention alone, one by the MLP alone, one by both; in four attention raises it."""
    entropy = [[9, 1, 2]] * 4 + [[9, 4, 1]] * 4
    half = [[5, 5, 3]] * 2 + [[5, 5, 0.5]] + [[5, 5, 1.5]] + [[5, 5, 6]] * 4
    run = write_run(tmp_path / "run", {f"p{k}": with_halves(entropy, half) for k in range(8)})
    table = perturbation_parts(run).set_index("group")
    assert table["layer"].tolist() == [3, 3, 3]
    perturbed, unperturbed, every = (table.loc[group] for group in GROUPS)
    assert perturbed[["change", "attention", "mlp"]].tolist() == [1, 1, 0]
    assert perturbed[list(RAISED_BY)].tolist() == [0.5, 0.25, 0.25, 0]
    assert perturbed[["neither_low", "neither_high"]].tolist() == [0, 0], "perturbed is raised by something"
    assert unperturbed[["change", "attention", "mlp"]].tolist() == [-3, 2, -5]
    assert unperturbed[list(RAISED_BY)].tolist() == [1, 0, 0, 0]
    assert unperturbed[["both_low", "both_high"]].tolist() == [0, 0], "what both raise is perturbed"
    assert every[["change", "attention", "mlp"]].tolist() == [-1, 1.5, -2.5]
    assert table[["n_tokens", "n_prompts"]].to_numpy().tolist() == [[32, 8], [32, 8], [64, 8]]


def test_intervals_resample_prompts(tmp_path):
    prompts = {f"p{k}": with_halves([[1, 2]] * 30, [[0, 1 + 0.1 * k]] * 30) for k in range(8)}
    row = perturbation_parts(write_run(tmp_path / "run", prompts)).iloc[0]
    half = scipy.stats.t.ppf(0.975, 7) * np.std([0.1 * k for k in range(8)], ddof=1) / math.sqrt(8)
    assert row["attention"] == pytest.approx(0.35)
    assert row["attention_high"] - row["attention_low"] == pytest.approx(2 * half, rel=0.15)
    assert row["change_high"] - row["change_low"] == pytest.approx(0)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(2, 6), st.integers(0, 2**16))
@settings(max_examples=15, deadline=None)
def test_laws(tmp_path_factory, lengths, n_layers, seed):
    """The parts add up to the change, the change of the last layer is that of the partition, and shares to 1."""
    run = write_run(tmp_path_factory.mktemp("laws") / "run", made_up(seed, lengths, n_layers, n_values=3))
    table = parts_by_layer(run)
    known = table[table["n_tokens"] > 0]
    assert (known["attention"] + known["mlp"]).to_numpy() == pytest.approx(known["change"].to_numpy(), abs=1e-5)
    assert known[list(RAISED_BY)].sum(axis=1).to_numpy() == pytest.approx(1)
    last, groups = perturbation_parts(run).set_index("group"), partition(run).set_index("group")
    for name in ("", "_low", "_high"):
        expected = groups[f"entropy_change{name}"].to_numpy()
        assert last[f"change{name}"].to_numpy() == pytest.approx(expected, abs=1e-5, nan_ok=True)
    assert last["n_tokens"].tolist() == groups["n_tokens"].tolist()
    assert not last.loc["perturbed", "neither"] > 0
    assert not last.loc["unperturbed", "both"] > 0
    if len(lengths) == 1:
        assert known[["change_low", "both_high", "mlp_low"]].isna().all(axis=None)


def test_half_steps_by_group_are_their_plain_reading(tmp_path):
    prompts = made_up(7, [5, 9, 3], without=(2,))
    table = half_step_curves(write_run(tmp_path / "run", prompts))
    for row in table.to_dict("records"):
        values = [
            half[row["layer"] - 1] for _, group, _, half in slow_tokens(prompts) if row["group"] in ("all", group)
        ]
        if row["layer"] == 2:
            assert np.isnan([row["half_entropy"], row["half_entropy_low"]]).all()
        else:
            assert row["half_entropy"] == pytest.approx(statistics.fmean(values))
            assert row["half_entropy_low"] < row["half_entropy"] < row["half_entropy_high"]


def test_prompts_that_were_not_finite_are_left_out_and_order_changes_nothing(tmp_path):
    prompts = made_up(2, [5, 7, 4])
    broken = {"broken": made_up(3, [6])["p0"]} | dict(reversed(prompts.items()))
    first = write_run(tmp_path / "a", prompts)
    second = write_run(tmp_path / "b", broken, finish_reasons={"broken": "non_finite"})
    for analysis in (perturbation_parts, parts_by_layer, half_step_curves):
        pd.testing.assert_frame_equal(analysis(first), analysis(second))


def test_a_run_that_cannot_tell_is_refused(tmp_path):
    with refused(RunError, problem="half_entropy", advice="sublayers"):
        perturbation_parts(write_run(tmp_path / "plain", {"p": {"entropy": np.ones((3, 4))}}))
    with refused(
        RunError, problem="in its last layer: its blocks are parallel there, or", advice="one after the other"
    ):
        perturbation_parts(write_run(tmp_path / "parallel", made_up(1, [4, 4], without=(1, 2, 3, 4, 5))))
    with refused(
        RunError, problem="in its last layer: its blocks are parallel there, or", advice="one after the other"
    ):
        perturbation_parts(write_run(tmp_path / "mixed", made_up(1, [4, 4], without=(5,))))
    with refused(RunError, problem="in any layer: its blocks are parallel there, or", advice="one after the other"):
        half_step_curves(write_run(tmp_path / "none", made_up(1, [4, 4], without=(1, 2, 3, 4, 5))))
    with refused(RunError, problem="single layer"):
        perturbation_parts(write_run(tmp_path / "single", made_up(1, [4], n_layers=1)))
