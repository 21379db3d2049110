"""Gains by difficulty, where nothing gains: levels from the compared answers make a gain, independent ones do not."""

import json
import random

import numpy as np
import pytest

from layerlens.analysis.levels import CONTROL, level_of, levels_table
from layerlens.errors import OptionError, RunError
from layerlens.tables import composed
from tests.evaluation.made_up_evaluation import write
from tests.refusals import refused

ITEMS, EPOCHS = 1200, 4


def run(folder, seed, arms=("last",), gain=0.0):
    """Answers to the same items, whose chances of a right answer do not depend on the run."""
    chances = [random.Random(item).random() for item in range(ITEMS)]
    draw = random.Random(1000 + seed)
    scores = {
        ("omni_math", arm): [
            [float(draw.random() < chance + (gain if arm != "last" else 0)) for _ in range(EPOCHS)]
            for chance in chances
        ]
        for arm in arms
    }
    write(folder, scores, 0.7)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"seed": seed}))
    return folder, scores


@pytest.fixture
def folders(tmp_path):
    return [
        run(tmp_path / "compared", 0, ("last", "valley"))[0],
        run(tmp_path / "levels", 1)[0],
        run(tmp_path / "control", 2)[0],
    ]


def test_levels_are_quarters():
    shares = np.array([1.0, 0.8, 0.75, 0.6, 0.5, 0.3, 0.25, 0.1, 0.0, np.nan])
    assert level_of(shares).tolist()[:9] == [1, 1, 2, 2, 3, 3, 4, 4, 4]
    assert np.isnan(level_of(shares)[9])


def test_a_method_without_an_effect_gains_on_hard_items_where_its_rival_chose_them(folders):
    table = levels_table(*folders).set_index(["levels_from", "level", "arm"])
    for arm in ("valley", CONTROL):  # neither has an effect
        assert table.loc[("itself", 4, arm), "difference_low"] > 0.02
        assert table.loc[("itself", 1, arm), "difference_high"] < -0.02
        for level in (1, 2, 3, 4):
            assert abs(table.loc[("independent", level, arm), "difference"]) < 0.06
        for level in (1, 4):
            ours, theirs = (table.loc[(one, level, arm), "difference"] for one in ("independent", "itself"))
            assert abs(ours) < abs(theirs) / 2


def test_scores_are_sums_in_plain_python(tmp_path, folders):
    _, compared = run(tmp_path / "again", 0, ("last", "valley"))
    _, levels = run(tmp_path / "more", 1)
    table = levels_table(*folders).set_index(["levels_from", "level", "arm"])
    means = [sum(one) / EPOCHS for one in levels["omni_math", "last"]]
    hard = [item for item, mean in enumerate(means) if mean <= 0.25]
    row = table.loc[("independent", 4, "valley")]
    valley = [sum(compared["omni_math", "valley"][item]) / EPOCHS for item in hard]
    last = [sum(compared["omni_math", "last"][item]) / EPOCHS for item in hard]
    assert row["n_items"] == len(hard)
    assert row["score"] == pytest.approx(sum(valley) / len(hard))
    assert row["difference"] == pytest.approx((sum(valley) - sum(last)) / len(hard))


def test_an_effect_is_seen_through_independent_levels(tmp_path, folders):
    better, _ = run(tmp_path / "better", 5, ("last", "valley"), gain=0.25)
    table = levels_table(better, *folders[1:]).set_index(["levels_from", "level", "arm"])
    assert table.loc[("independent", 4, "valley"), "difference_low"] > 0.15
    assert table.loc[("independent", 4, CONTROL), "difference_high"] < 0.1


def test_runs_that_are_not_independent(tmp_path, folders):
    twin, _ = run(tmp_path / "twin", 0)
    for levels, control, option in ((folders[0], folders[2], "levels"), (folders[1], twin, "control")):
        with pytest.raises(OptionError) as error:
            levels_table(folders[0], levels, control)
        assert error.value.option == option


def test_other_items(tmp_path, folders):
    other = write(tmp_path / "other", {("gsm8k", "last"): [[1.0]] * 3}, 0.7)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"seed": 9}))
    with pytest.raises(RunError):
        levels_table(folders[0], folders[1], other)


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"source": "another", "fingerprint": "ab"}},
        {"lens": {"kind": "tuned", "source": "here", "sha256": "ab"}},
        {"generation": {"chat_template": False}},
        {"config": {"temperature": 0.9}},
        {"items_sha256": "of other references"},
    ],
)
@pytest.mark.parametrize("place", [1, 2])
def test_evaluations_that_differ_in_more_than_their_seed(folders, change, place):
    """Another model as the control, or as what chooses the levels, would show anything but chance."""
    path = folders[place] / "manifest.json"
    manifest = json.loads(path.read_text())
    for name, value in change.items():
        (manifest["evaluation"]["tasks"]["omni_math"] if name in ("config", "items_sha256") else manifest)[name] = value
    path.write_text(json.dumps(manifest))
    with refused(RunError, given=folders[place], problem="cannot stand beside"):
        levels_table(*folders)


def test_greedy_answers_are_not_independent(tmp_path):
    """Another seed changes nothing where nothing is drawn."""
    places = [write(tmp_path / name, {("omni_math", "last"): [[1.0], [0.0]]}) for name in "abc"]
    for seed, place in enumerate(places):
        manifest = json.loads((place / "manifest.json").read_text())
        (place / "manifest.json").write_text(json.dumps(manifest | {"seed": seed}))
    with refused(RunError, given=places[1], problem="greedy"):
        levels_table(*places)


def test_table_3_needs_three(folders):
    assert set(composed("3", None, folders)["method"]) == {"last", "confident", CONTROL}
    with pytest.raises(OptionError) as error:
        composed("3", None, folders[:2])
    assert error.value.option == "evaluation"


def test_table_1_has_the_papers_rows_and_what_was_measured(folders):
    table = composed("1", None, folders[:1])
    ours = table[table["measured"].notna()]
    assert ours[["model", "method", "benchmark"]].to_numpy().tolist() == [
        ["made up", "last", "Omni-MATH"],
        ["made up", "confident", "Omni-MATH"],
    ]
    assert ours["reported"].isna().all()
    assert (table["reported"].notna().sum(), table["difference"].notna().sum()) == (84, 0)
    with refused(RunError, given=folders[1], problem="made up last Omni-MATH"):
        composed("1", None, [folders[0], folders[1]])
