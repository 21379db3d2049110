"""What the explorer is given, unpacked again as its description says."""

import base64
import json
import math
import zlib

import numpy as np
import pytest

from layerlens.errors import OptionError, RunError
from layerlens.report import packing
from tests.made_up_run import write_run
from tests.refusals import refused

KINDS = {"uint8": np.uint8, "uint16": np.uint16, "uint32": np.uint32, "int32": np.int32}
MEASURES = ("entropy", "norm_ratio", "io_cosine")


def inflated(base64_text):
    return zlib.decompress(base64.b64decode(base64_text))


def column(prompt, name):
    kind, content = prompt["columns"][name]
    return np.frombuffer(inflated(content), KINDS[kind]).tolist()


def held(packed, prompt, measure, token, layer):
    """A measure after layer 1..L as a reader of the format would read it; None where it was not finite."""
    step = column(prompt, measure)[token * packed["n_layers"] + layer - 1]
    if step == packed["steps"]:
        return None
    ends = packed["measures"][measure]
    along = ends["low"][layer - 1] + (ends["high"][layer - 1] - ends["low"][layer - 1]) * step / (packed["steps"] - 1)
    return {"entropy": along**2, "norm_ratio": (math.exp(along) - 1) / 100, "io_cosine": along}[measure]


def measured(n_tokens, n_layers, seed=0):
    random = np.random.default_rng(seed)
    shape = (n_tokens, n_layers)
    return {
        "entropy": random.gamma(0.5, 2, shape),
        "norm_ratio": random.lognormal(-1, 1.2, shape),
        "io_cosine": random.uniform(-0.3, 1, shape),
        "top_token_id": random.integers(0, 900, shape).astype(np.int32),
    }


@pytest.fixture
def run(tmp_path):
    prompts = {f"p{index}": measured(7 + index, 6, seed=index) for index in range(3)}
    prompts["p1"]["entropy"][2, 3] = np.nan
    prompts["p1"]["norm_ratio"][0, 0] = np.inf
    prompts["p2"]["next_token_id"] = [*range(3, 11), None]
    return write_run(tmp_path / "run", prompts, words={3: "three", 4: " four"})


@pytest.mark.parametrize(("steps", "most"), [(65535, 2e-4), (255, 0.05), (127, 0.1)])
def test_measures_come_back(run, monkeypatch, steps, most):
    monkeypatch.setattr(packing, "STEPS", (steps,))
    packed = packing.pack(run)
    assert packed["steps"] == steps
    ids = run.positions["prompt_id"].to_numpy()
    for measure in MEASURES:
        errors = []
        for prompt in packed["prompts"]:
            rows = run.layers(measure)[ids == prompt["id"]]
            for token, row in enumerate(rows):
                for layer, value in enumerate(row, start=1):
                    back = held(packed, prompt, measure, token, layer)
                    assert (back is None) == (not math.isfinite(value))
                    if back is not None:
                        errors.append(abs(back - float(value)))
        assert max(errors) < most
        said = packed["measures"][measure]["error"]
        assert np.mean(np.array(errors) <= said * 1.0001) >= 0.99
        assert said <= max(errors) * 1.0001


def test_ids_and_layers_come_back(run):
    packed = packing.pack(run)
    words = json.loads(inflated(packed["words"]))
    assert words[0] == ""
    for prompt in packed["prompts"]:
        rows = run.tokens[run.tokens["prompt_id"] == prompt["id"]]
        assert prompt["n_tokens"] == len(rows)
        for name in ("position", "valley_layer", "selected_layer", "is_generated", "perturbed"):
            assert column(prompt, name) == [int(value) for value in rows[name]]
        for name in ("token_id", "next_token_id"):
            texts = [words[code] for code in column(prompt, name)]
            assert texts == ["" if np.isnan(i) else run.text_of([int(i)])[0] for i in rows[name]]
        tops = [words[code] for code in column(prompt, "top_token_id")]
        assert tops == run.text_of([i for row in rows["top_token_id"] for i in row])
    assert "three" in words
    assert " four" in words
    assert "#0" in words
    assert json.loads(inflated(packed["prompts"][0]["texts"])) == {"prompt": "the text of p0", "reference": None}


def test_colours_run_between_percentiles_of_each_layer(run):
    packed = packing.pack(run)
    for measure in MEASURES:
        for layer in range(6):
            values = sorted(v for v in run.layers(measure)[:, layer].tolist() if math.isfinite(v))
            for name, level in (("pale", 0.02), ("strong", 0.98)):
                at = level * (len(values) - 1)
                below = int(at)
                expected = values[below] + (at - below) * (values[min(below + 1, len(values) - 1)] - values[below])
                if measure == "entropy" and name == "pale":
                    expected = 0
                assert packed["measures"][measure][name][layer] == pytest.approx(expected, rel=1e-5)


def test_rows_follow_positions(tmp_path):
    entropy = np.array([[3.0, 1], [1, 2], [2, 4]])
    run = write_run(tmp_path / "run", {"p": {"entropy": entropy, "position": np.array([9, 7, 8], np.int32)}})
    packed = packing.pack(run)
    assert column(packed["prompts"][0], "position") == [7, 8, 9]
    back = [held(packed, packed["prompts"][0], "entropy", token, 1) for token in range(3)]
    assert back == pytest.approx([1, 2, 3], abs=1e-3)


def test_chosen_prompts_in_the_order_given(run):
    packed = packing.pack(run, ["p2", "p0"])
    assert [prompt["id"] for prompt in packed["prompts"]] == ["p2", "p0"]
    assert packed["prompts_left_out"] == 0
    with refused(OptionError, "prompt_ids", problem="'p9'"):
        packing.pack(run, ["p0", "p9"])
    with pytest.raises(OptionError, match="choose from"):
        packing.pack(run, [])


def test_fewer_steps_then_fewer_prompts_when_space_is_short(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", {f"p{index}": measured(60, 12, seed=index) for index in range(6)})
    sizes, steps = [], []
    for budget in (200_000, 35_000, 20_000, 3_000, 10):
        monkeypatch.setattr(packing, "BUDGET", budget)
        packed = packing.pack(run)
        steps.append(packed["steps"])
        sizes.append(len(packed["prompts"]))
        assert packed["prompts_left_out"] == 6 - sizes[-1]
        assert len(json.dumps(packed)) <= budget + 30 or sizes[-1] == 1
        largest = max(len(json.dumps(prompt)) for prompt in packed["prompts"])
        assert len(json.dumps(packed)) + 1.2 * largest > budget or sizes[-1] == 6  # no room for another one
    assert steps[0] == 65535
    assert steps[1:] == sorted(steps[1:], reverse=True)
    assert steps[1] < 65535
    assert sizes[0] == 6
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1


def test_long_prompts_are_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "TOKENS_SHOWN", 5)
    run = write_run(tmp_path / "run", {"long": measured(8, 3), "short": measured(4, 3)})
    packed = packing.pack(run)
    assert [(p["n_tokens"], p["n_left_out"]) for p in packed["prompts"]] == [(5, 3), (4, 0)]
    assert column(packed["prompts"][0], "position") == [5, 6, 7, 8, 9]


def test_a_run_without_positions_is_refused(tmp_path):
    run = write_run(tmp_path / "run", {"none": {"entropy": np.zeros((0, 4))}})
    with refused(RunError, problem="complete prompt", advice="resume=True"):
        packing.pack(run)
