"""Jumps of entropy at changes of layer kind: planted noise is found, a descent is not mistaken for it."""

import math
import statistics

import numpy as np
import pandas as pd
import pytest

from layerlens.analysis.kinds import kind_jumps
from layerlens.errors import RunError
from tests.made_up_run import hybrid_curves, hybrid_kinds, planted, write_run
from tests.refusals import refused

MEASURES = ("jump_of_means", "mean_jump")


def with_type_noise(step, n_layers=40):
    """Curves of a hybrid model whose full-attention layers lie above the others by a step, in nats."""
    curves = hybrid_curves(n_layers)
    lifted = step * (np.arange(1, n_layers + 1) % 4 == 0)
    return curves | {name: curves[name] + lifted for name in ("perturbed", "unperturbed")}


def found(folder, prompts, kinds, **options):
    table = kind_jumps(write_run(folder, prompts, layer_kinds=kinds, **options))
    return table.set_index(["stretch", "transitions"])


def test_jumps_are_their_plain_reading(tmp_path):
    """Four layers are too few for phases: every transition counts. Kinds change at 1-2 and 3-4, not at 2-3."""
    random = np.random.default_rng(2)
    prompts = {f"p{k}": {"entropy": random.gamma(2, 1, (n, 4)).astype(np.float32)} for k, n in enumerate((5, 2, 9))}
    table = found(tmp_path / "run", prompts, ["full", "linear", "linear", "full"])
    tokens = [token.tolist() for rows in prompts.values() for token in rows["entropy"]]
    means = [statistics.fmean(token[layer] for token in tokens) for layer in range(4)]
    expected = {}
    for sort, befores in (("between kinds", (0, 2)), ("within a kind", (1,))):
        of_means = statistics.fmean(abs(means[layer + 1] - means[layer]) for layer in befores)
        of_tokens = statistics.fmean(abs(token[layer + 1] - token[layer]) for token in tokens for layer in befores)
        expected[sort] = (len(befores), of_means, of_tokens)
    between, within = expected["between kinds"], expected["within a kind"]
    expected["difference"] = (3, between[1] - within[1], between[2] - within[2])
    assert list(table.index) == [("all layers", sort) for sort in expected]
    for sort, values in expected.items():
        row = table.loc[("all layers", sort)]
        assert row[["n_transitions", *MEASURES]].tolist() == pytest.approx(values, rel=1e-5)
        assert row[["first", "last", "n_tokens", "n_prompts"]].tolist() == [1, 4, 16, 3]
        for name in MEASURES:
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]


def test_planted_type_noise_is_found_on_the_plateau(tmp_path):
    """0.2 nats at each change of kind, none elsewhere; phase II is 5..39, the plateau ends where the descent begins."""
    table = found(
        tmp_path / "run", planted(with_type_noise(0.2), noise=0.02, n_tokens=30), hybrid_kinds(), n_vocab=248320
    )
    assert table.loc[("phase II", "difference"), ["first", "last"]].tolist() == [5, 39]
    assert table.loc[("plateau", "difference"), ["first", "last"]].tolist() == [5, 28]
    assert table.loc["plateau", "n_transitions"].tolist() == [11, 12, 23]
    between, within, difference = (table.loc[("plateau", sort)] for sort in table.loc["plateau"].index)
    assert between["jump_of_means"] == pytest.approx(0.2, rel=0.02)
    assert within["jump_of_means"] == pytest.approx(0, abs=0.02)
    assert difference["jump_of_means_low"] > 0.15
    assert difference["mean_jump_low"] > 0.15


def test_a_descent_decides_a_stretch_that_holds_it_and_not_the_plateau(tmp_path):
    """No type noise; the kinds change only where the curve falls, by about one nat a layer."""
    kinds = ["linear"] * 27 + ["full", "linear"] * 6 + ["linear"]
    table = found(tmp_path / "run", planted(hybrid_curves(), noise=0.02), kinds, n_vocab=248320)
    assert table.loc[("phase II", "difference"), "jump_of_means_low"] > 0.5
    assert table.loc[("plateau", "between kinds"), ["n_transitions", *MEASURES]].tolist() == pytest.approx([1, 0, 0])
    assert abs(table.loc[("plateau", "difference"), "jump_of_means"]) < 0.01


def test_without_type_noise_the_interval_of_the_difference_holds_zero(tmp_path):
    random = np.random.default_rng(7)
    prompts = {
        f"p{k}": {"entropy": 3 + random.normal(0, 0.3, (20, 40)) + random.normal(0, 0.1, (1, 40))} for k in range(12)
    }
    difference = found(tmp_path / "run", prompts, hybrid_kinds()).loc[("phase II", "difference")]
    for name in MEASURES:
        assert difference[f"{name}_low"] < 0 < difference[f"{name}_high"]


def test_a_model_whose_kind_changes_everywhere_has_nothing_to_compare_with(tmp_path):
    table = found(tmp_path / "run", planted(hybrid_curves(8), n_prompts=3), ["linear", "full"] * 4)
    assert (table["n_transitions"] > 0).tolist()[0]
    for sort in ("within a kind", "difference"):
        row = table.xs(sort, level="transitions").iloc[0]
        assert row[[*MEASURES, "mean_jump_low", "jump_of_means_high"]].isna().all()


def test_one_prompt_has_jumps_without_intervals(tmp_path):
    table = found(tmp_path / "run", planted(with_type_noise(0.2), n_prompts=1), hybrid_kinds())
    assert table[list(MEASURES)].notna().all(axis=None)
    assert table[[f"{name}{end}" for name in MEASURES for end in ("_low", "_high")]].isna().all(axis=None)


def test_the_order_of_prompts_changes_nothing(tmp_path):
    prompts = planted(with_type_noise(0.1), noise=0.2, n_prompts=5)
    pair = [
        write_run(tmp_path / name, rows, layer_kinds=hybrid_kinds())
        for name, rows in (("a", prompts), ("b", dict(reversed(prompts.items()))))
    ]
    pd.testing.assert_frame_equal(*map(kind_jumps, pair))


def test_a_model_of_one_kind_is_refused_with_models_that_have_two(tmp_path):
    run = write_run(tmp_path / "run", planted(hybrid_curves(), n_prompts=2), layer_kinds=["sliding"] * 40)
    with refused(RunError, problem="'sliding'", advice="qwen3_5"):
        kind_jumps(run)


def test_noise_alone_makes_jumps_and_no_difference(tmp_path):
    """The mean of |difference| of two independent normal values of sd s is 2 s / sqrt(pi)."""
    random = np.random.default_rng(1)
    prompts = {f"p{k}": {"entropy": 5 + 0.3 * random.normal(size=(200, 40))} for k in range(6)}
    table = found(tmp_path / "run", prompts, hybrid_kinds())
    assert table.loc[("phase II", "within a kind"), "mean_jump"] == pytest.approx(0.6 / math.sqrt(math.pi), rel=0.02)
