"""analyses/models.py: two runs of the same prompts beside each other, against means by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.made_up_run import write_run

SCRIPT = Path(__file__).resolve().parents[2] / "analyses" / "models.py"


@pytest.fixture
def call(script):
    return lambda *arguments: script(SCRIPT, *arguments)


def measures(last: list[float], n_layers: int) -> dict[str, np.ndarray]:
    """Tokens whose entropy is 1 nat up to the last layer; the first position is written to a hundred times as hard."""
    entropy = np.ones((len(last), n_layers))
    entropy[:, -1] = last
    ratio = np.full(entropy.shape, 0.5)
    ratio[0] = 50.0
    return {"entropy": entropy, "norm_ratio": ratio, "position": np.arange(len(last), dtype=np.int32)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Six tokens each in two prompts; the other model has more layers, more perturbed tokens and shorter prompts."""
    folder = tmp_path_factory.mktemp("models")
    one = write_run(folder / "one", {"a": measures([3, 2, 0.5, 0.5], 9), "b": measures([0.5, 0.5], 9)})
    kinds = [*["sliding"] * 12, "full"]
    two = write_run(folder / "two", {"a": measures([0.5, 2, 3], 13), "b": measures([2, 4, 0], 13)}, layer_kinds=kinds)
    return one, two


@pytest.mark.parametrize("skip", [False, True])
def test_means_and_differences_are_those_by_hand(call, runs, tmp_path, skip):
    done = call(*(run.path for run in runs), tmp_path, *["--skip-first"] * skip)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "models.csv").set_index("quantity")
    last = np.array([[3, 2, 0.5, 0.5, 0.5, 0.5], [0.5, 2, 3, 2, 4, 0]])
    kept = np.array([[0, 1, 1, 1, 0, 1], [0, 1, 1, 0, 1, 1]]) if skip else np.ones((2, 6))
    mean = lambda values: (values * kept).sum(1) / kept.sum(1)  # noqa: E731
    perturbed, change = 100 * mean(last > 1), mean(last - 1)
    assert table.loc["perturbed tokens", "measured"].tolist() == pytest.approx(perturbed, rel=1e-5)
    assert table.loc["perturbed tokens", "n_tokens"].tolist() == kept.sum(1).tolist()
    assert table.loc["perturbed tokens, difference", "measured"] == pytest.approx(np.diff(perturbed)[0], rel=1e-5)
    assert table.loc["entropy change at L, all", "measured"].tolist() == pytest.approx(change, rel=1e-5)
    for n_layers, expected in zip((9, 13), mean(last), strict=True):
        assert table.loc[f"entropy, layer {n_layers}", "measured"] == pytest.approx(expected, rel=1e-5)
    jumps = table.filter(like="between kinds", axis=0)["measured"]
    assert jumps.tolist() == pytest.approx([mean(np.abs(last - 1))[1]], rel=1e-5)  # of the model that mixes kinds
    ratios = 0.5 if skip else mean(np.array([[50, 0.5, 0.5, 0.5, 50, 0.5], [50, 0.5, 0.5, 50, 0.5, 0.5]]))[0]
    assert table.loc["norm ratio, layer 1", "measured"].iloc[0] == pytest.approx(ratios, rel=1e-5)


def test_prompts_that_are_not_the_same_are_refused(call, runs, tmp_path):
    other = write_run(tmp_path / "other", {"a": measures([3, 2], 9), "c": measures([0.5, 0.5], 9)})
    done = call(runs[0].path, other.path, tmp_path / "out")
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]
    assert "same prompts" in said
    assert all(str(run.path) in said for run in (runs[0], other))
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
