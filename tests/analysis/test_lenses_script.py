"""analyses/lenses.py: the same tokens under several lenses, against counts and resamples by hand."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from layerlens.analysis.uncertainty import resample
from layerlens.run import open_run
from tests.evaluation.made_up import write_ablation
from tests.made_up_run import write_run
from tests.thorough import thorough

SCRIPT = Path(__file__).resolve().parents[2] / "analyses" / "lenses.py"
N_LAYERS = 9
LENGTHS = range(21, 33)


@pytest.fixture
def call(script):
    return lambda *arguments: script(SCRIPT, *arguments)


def entropies(rising, seed):
    """Entropy by prompt: L-1 is at 2 nats, L above it where it rises, by what is drawn."""
    random = np.random.default_rng(seed)
    found = {}
    for name, flags in rising.items():
        entropy = 3 + random.random((len(flags), N_LAYERS))
        entropy[:, -2] = 2
        step = 0.1 + random.random(len(flags))
        entropy[:, -1] = 2 + np.where(flags, step, -step)
        found[name] = entropy.astype(np.float32)
    return found


def written(folder, entropy, lens, *, first_id=1, **columns):
    prompts = {}
    for name, values in entropy.items():
        ids = np.arange(first_id, first_id + len(values), dtype=np.int32)
        given = {column: np.full(values.shape, number, np.float32) for column, number in columns.items()}
        if "half_entropy" in columns:
            given["half_top_token_id"] = np.zeros(values.shape, np.int32)
        prompts[name] = {"entropy": values, "next_token_id": ids} | given
    write_run(folder, prompts)
    return through(folder, lens)


def through(folder, lens):
    """The folder, whose manifest says through which lens layers were read."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"lens": {"kind": lens, "source": "made up", "sha256": "0"}}))
    return folder


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Under the logit lens six tokens of ten rise; under the linear one a third of those and a tenth of the others."""
    folder, random = tmp_path_factory.mktemp("lenses"), np.random.default_rng(1)
    logit = {f"p{index:02d}": random.random(length) < 0.6 for index, length in enumerate(LENGTHS)}
    linear = {name: random.random(len(flags)) < np.where(flags, 1 / 3, 0.1) for name, flags in logit.items()}
    entropy = {"logit": entropies(logit, 2), "linear": entropies(linear, 3)}
    more = {"kl_last_to_layer": 0.25, "half_entropy": 1.5}
    return {lens: (written(folder / lens, entropy[lens], lens, **more), entropy[lens]) for lens in entropy}


@pytest.fixture
def table(call, planted, tmp_path):
    done = call(*(folder for folder, _ in planted.values()), tmp_path)
    assert done.returncode == 0, done.stderr
    found = pd.read_csv(tmp_path / "lenses.csv")
    assert (tmp_path / "curves.png").exists()
    return {lens: rows.set_index("quantity") for lens, rows in found.groupby("lens")}


def changes(planted, lens):
    return [values[:, -1].astype(float) - values[:, -2] for _, values in sorted(planted[lens][1].items())]


def test_the_four_kinds_of_token_are_counted(table, planted):
    ours, theirs = (np.concatenate(changes(planted, lens)) > 0 for lens in ("logit", "linear"))
    rows = table["linear"]
    found = [
        rows.loc[f"perturbed under {name}", "measured"]
        for name in ("both lenses", "the logit lens alone", "this lens alone", "neither lens")
    ]
    by_hand = [(a & b).mean() for a, b in ((ours, theirs), (ours, ~theirs), (~ours, theirs), (~ours, ~theirs))]
    assert found == pytest.approx([100 * share for share in by_hand], rel=1e-5)
    assert rows.loc["perturbed under neither lens", "n_tokens"] == sum(LENGTHS)
    given = [
        rows.loc[f"perturbed under this lens, of {name}", "measured"] for name in ("the logit lens's", "the others")
    ]
    assert given == pytest.approx([100 * theirs[ours].mean(), 100 * theirs[~ours].mean()], rel=1e-5)
    apart = rows.loc["perturbed under this lens, of the logit lens's less of the others", "measured"]
    assert apart == pytest.approx(given[0] - given[1], rel=1e-4)


def test_differences_are_those_of_resamples_of_prompts_in_pairs(table, planted):
    ours, theirs = changes(planted, "logit"), changes(planted, "linear")
    sums = [np.array([prompt.sum() for prompt in one]) for one in (ours, theirs)]
    lengths, weights = np.array([*LENGTHS]), resample(len(LENGTHS))
    drawn = [weights @ one / (weights @ lengths) for one in sums]
    row = table["linear"].loc["entropy change at L, all, this lens less the logit lens"]
    assert row["measured"] == pytest.approx((sums[1].sum() - sums[0].sum()) / lengths.sum(), rel=1e-4)
    plain = np.quantile(drawn[1] - drawn[0], [0.025, 0.975])  # ours is a little wider: see `uncertainty`
    assert row["low"] == pytest.approx(plain[0], abs=0.1)
    assert row["low"] < plain[0] < row["measured"] < plain[1] < row["high"]


def test_changes_of_the_logit_lens_s_tokens_are_of_the_same_tokens(table, planted):
    ours, theirs = (np.concatenate(changes(planted, lens)) for lens in ("logit", "linear"))
    rows = table["linear"]
    under = rows.loc["entropy change at L under this lens, of the logit lens's"]
    assert under["measured"] == pytest.approx(theirs[ours > 0].mean(), rel=1e-4)
    assert under["n_tokens"] == (ours > 0).sum()
    less = rows.loc["entropy change at L, this lens less the logit lens, of the others", "measured"]
    assert less == pytest.approx((theirs - ours)[ours <= 0].mean(), rel=1e-4)


@pytest.mark.parametrize("lens", ["logit", "linear"])
def test_the_gap_and_the_parts_are_those_planted(table, planted, lens):
    rows, change = table[lens], np.concatenate(changes(planted, lens))
    assert rows.loc["perturbed tokens", "measured"] == pytest.approx(100 * (change > 0).mean(), rel=1e-5)
    assert rows.loc["KL(L || L-1), all", "measured"] == 0.25
    assert rows.loc["surplus at L-1, perturbed", "measured"] == pytest.approx(
        change[change > 0].mean() + 0.25, rel=1e-4
    )
    assert rows.loc["attention's part of the change at L, all", "measured"] == pytest.approx(-0.5)
    assert rows.loc["mlp's part of the change at L, all", "measured"] == pytest.approx(change.mean() + 0.5, rel=1e-4)


def test_curves_are_of_the_logit_lens_s_groups(call, planted, tmp_path):
    assert call(*(folder for folder, _ in planted.values()), tmp_path).returncode == 0
    curves = pd.read_csv(tmp_path / "curves.csv").set_index(["lens", "group", "layer"]).sort_index()
    perturbed = np.concatenate(changes(planted, "logit")) > 0
    entropy = np.concatenate([values for _, values in sorted(planted["linear"][1].items())])
    for group, among in (("perturbed", perturbed), ("unperturbed", ~perturbed)):
        rows = curves.loc[("linear", group)]
        assert rows["entropy"].tolist() == pytest.approx(entropy[among].mean(0).tolist(), rel=1e-4)
        assert set(rows["n_tokens"]) == {among.sum()}


def test_runs_of_other_tokens_are_refused(call, planted, tmp_path):
    _, entropy = planted["linear"]
    other = written(tmp_path / "other", entropy, "linear", first_id=2)
    done = call(planted["logit"][0], other, tmp_path / "out")
    assert done.returncode == 2
    assert "same tokens" in done.stderr


def test_the_first_run_is_of_the_logit_lens(call, planted, tmp_path):
    done = call(*(folder for folder, _ in reversed(planted.values())), tmp_path)
    assert done.returncode == 2
    assert "logit" in done.stderr


def test_answers_are_compared_item_by_item(call, planted, tmp_path):
    right, wrong = (True, 9, "stop"), (False, 9, "max_tokens")
    items = [f"i{index}" for index in range(20)]
    last = {item: [right if index < 8 else wrong] for index, item in enumerate(items)}
    folders = []
    for lens, n_right in (("logit", 2), ("linear", 6)):
        valley = {item: [right if index < n_right else wrong] for index, item in enumerate(items)}
        answers = {("last", 0.0): last, ("valley", 1.0): valley}
        folders.append(through(write_ablation(tmp_path / lens, answers, dataset="sample"), lens))
    asked = [word for folder in folders for word in ("--evaluation", folder)]
    done = call(*(folder for folder, _ in planted.values()), tmp_path / "out", *asked)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "out" / "lenses.csv").set_index(["lens", "quantity"])["measured"]
    assert table["linear", "right answers, last layer"] == 40
    assert table["logit", "right answers, valley"] == 10
    assert table["linear", "right answers, valley less last layer"] == pytest.approx(-10)
    assert table["linear", "right answers, valley, this lens less the logit lens"] == pytest.approx(20)


def test_made_up_runs_say_their_lens(planted):
    assert [open_run(folder).manifest["lens"]["kind"] for folder, _ in planted.values()] == ["logit", "linear"]


@thorough
def test_models_are_drawn_beside_each_other(call, script, planted, tmp_path):
    assert call(*(folder for folder, _ in planted.values()), tmp_path / "one").returncode == 0
    drawing = SCRIPT.parent / "lens_figure.py"
    done = script(drawing, f"One={tmp_path / 'one'}", f"Two={tmp_path / 'one'}", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    drawn = pd.read_csv(tmp_path / "out" / "lenses.csv").set_index(["model", "lens", "quantity"])["measured"]
    of_one = pd.read_csv(tmp_path / "one" / "lenses.csv").set_index(["lens", "quantity"])["measured"]
    for model in ("One", "Two"):
        assert drawn[model, "linear", "perturbed tokens"] == of_one["linear", "perturbed tokens"]
    assert script(drawing, f"One={tmp_path / 'none'}", tmp_path / "out").returncode == 2
