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
CONFIDENCES = ("confidence", "vocab_confidence")


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
    curves = {"norm_ratio": (math.exp(along) - 1) / 100}
    curves |= dict.fromkeys(("io_cosine", "top_prob", *CONFIDENCES), along)
    return (curves | {"next_rank": math.exp(along) - 1}).get(measure, along**2)


def measured(n_tokens, n_layers, seed=0):
    random = np.random.default_rng(seed)
    shape = (n_tokens, n_layers)
    return {
        "entropy": random.gamma(0.5, 2, shape),
        "norm_ratio": random.lognormal(-1, 1.2, shape),
        "io_cosine": random.uniform(-0.3, 1, shape),
        "top_token_id": random.integers(0, 900, shape).astype(np.int32),
    }


def on_request(n_tokens, n_layers, n_tops=6, seed=0):
    random = np.random.default_rng(seed + 100)
    shape = (n_tokens, n_layers)
    return {
        "top_k_token_ids": random.integers(0, 2000, (*shape, n_tops)),
        "top_k_probs": np.sort(random.dirichlet(np.full(n_tops + 3, 0.4), shape)[..., :n_tops])[..., ::-1],
        "next_rank": random.integers(0, 49152, shape) * random.integers(0, 2, shape),
        "next_log_prob": -random.gamma(1, 2, shape),
        "js_from_last": random.random(shape) * math.log(2),
        "kl_last_to_layer": random.gamma(1, 2, shape),
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


@pytest.fixture
def full(tmp_path):
    """A run with everything that can be asked for, NaN and absent values in it."""
    prompts = {f"p{n}": measured(7 + n, 6, seed=n) | on_request(7 + n, 6, seed=n) for n in range(3)}
    prompts["p1"]["top_k_probs"][2, 3] = np.nan
    prompts["p2"]["next_rank"][-1] = -1
    return write_run(tmp_path / "full", prompts, words={3: "three", 1999: "last"})


@pytest.mark.parametrize(("steps", "relative"), [(65535, 2e-4), (255, 0.05), (127, 0.1)])
def test_what_was_asked_for_comes_back(full, monkeypatch, steps, relative):
    monkeypatch.setattr(packing, "STEPS", (steps,))
    packed = packing.pack(full)
    assert list(packed["measures"]) == [*MEASURES, "top_prob", "next_rank", "js_from_last"]
    for prompt in packed["prompts"]:
        rows = [row for row in full.tokens.to_dict("records") if row["prompt_id"] == prompt["id"]]
        for token, row in enumerate(rows):
            for layer in range(1, 7):
                expected = {
                    "top_prob": row["top_k_probs"][layer - 1][0],
                    "next_rank": row["next_rank"][layer - 1],
                    "js_from_last": row["js_from_last"][layer - 1],
                }
                for measure, value in expected.items():
                    back = held(packed, prompt, measure, token, layer)
                    if value is None or math.isnan(value):
                        assert back is None
                    elif measure == "next_rank":
                        assert back == pytest.approx(value, rel=relative, abs=0.05)
                        assert (round(back) == 0) == (value == 0)
                    else:
                        assert back == pytest.approx(value, abs=relative)


@pytest.mark.parametrize(("steps", "most"), [(65535, 2e-4), (255, 0.01), (127, 0.02)])
def test_confidences_come_back(tmp_path, monkeypatch, steps, most):
    monkeypatch.setattr(packing, "STEPS", (steps,))
    random = np.random.default_rng(3)
    prompts = {f"p{n}": measured(7 + n, 6, seed=n) for n in range(3)}
    for given in prompts.values():
        given |= {name: random.uniform(0, 2, given["entropy"].shape) for name in CONFIDENCES}
    prompts["p1"]["vocab_confidence"][:, 3] = np.nan
    run = write_run(tmp_path / "run", prompts)
    packed = packing.pack(run)
    assert list(packed["measures"]) == [*MEASURES, *CONFIDENCES]
    for prompt in packed["prompts"]:
        for measure in CONFIDENCES:
            for token, row in enumerate(prompts[prompt["id"]][measure]):
                for layer, value in enumerate(row, start=1):
                    back = held(packed, prompt, measure, token, layer)
                    assert back is None if math.isnan(value) else back == pytest.approx(value, abs=most)


def test_confidences_that_are_null_are_held_as_such(tmp_path):
    given = measured(5, 4) | {name: np.full((5, 4), np.nan) for name in CONFIDENCES}
    packed = packing.pack(write_run(tmp_path / "run", {"p": given}))
    for measure in CONFIDENCES:
        assert {held(packed, packed["prompts"][0], measure, token, 2) for token in range(5)} == {None}
    json.dumps(packed, allow_nan=False)


def first_words(packed, prompt, words, token, layer):
    """The texts and probabilities of a layer's first words, as a reader of the format would read them."""
    k, (kind, codes, steps) = packed["first_words"]["k"], prompt["first_words"]
    at = slice((token * packed["n_layers"] + layer - 1) * k, (token * packed["n_layers"] + layer) * k)
    texts = [words[code] for code in np.frombuffer(inflated(codes), KINDS[kind])[at]]
    probs = [None if step == 255 else (step / 254) ** 2 for step in inflated(steps)[at]]
    return texts, probs


def test_the_first_words_of_each_layer_come_back(full):
    packed = packing.pack(full)
    assert packed["first_words"]["k"] == 6
    words = json.loads(inflated(packed["words"])) + json.loads(inflated(packed["first_words"]["words"]))
    assert len(words) == len(set(words))
    for prompt in packed["prompts"]:
        rows = [row for row in full.tokens.to_dict("records") if row["prompt_id"] == prompt["id"]]
        for token, row in enumerate(rows):
            for layer in range(1, 7):
                texts, probs = first_words(packed, prompt, words, token, layer)
                assert texts == full.text_of(row["top_k_token_ids"][layer - 1])
                for back, value in zip(probs, row["top_k_probs"][layer - 1], strict=True):
                    assert (back is None) == (value is None or math.isnan(value))
                    assert back is None or back == pytest.approx(value, abs=0.004)


def test_a_run_holds_what_it_was_asked_for(run, tmp_path):
    packed = packing.pack(run)
    assert list(packed["measures"]) == list(MEASURES)
    assert "first_words" not in packed
    assert all("first_words" not in prompt for prompt in packed["prompts"])
    for column, measures in (
        ("next_rank", ["next_rank"]),
        ("js_from_last", ["js_from_last"]),
        ("kl_last_to_layer", ["kl_last_to_layer"]),
        ("top_k_probs", ["top_prob"]),
    ):
        asked = {"next_rank": ["next_log_prob"], "top_k_probs": ["top_k_token_ids"]}.get(column, [])
        given = {name: on_request(9, 4)[name] for name in [column, *asked]}
        one = write_run(tmp_path / column, {"p": measured(9, 4) | given})
        packed = packing.pack(one)
        assert list(packed["measures"]) == [*MEASURES, *measures]
        assert ("first_words" in packed) == (column == "top_k_probs")


def test_first_words_are_held_as_far_as_they_fit(tmp_path, monkeypatch):
    prompts = {f"p{n}": measured(40, 8, seed=n) | on_request(40, 8, n_tops=12, seed=n) for n in range(4)}
    run = write_run(tmp_path / "run", prompts)
    sizes = []
    for budget in (160_000, 80_000, 45_000, 36_000, 28_000, 10):
        monkeypatch.setattr(packing, "BUDGET", budget)
        packed = packing.pack(run)
        assert len(json.dumps(packed)) <= budget + 60 or len(packed["prompts"]) == 1
        holding = ["first_words" in prompt for prompt in packed["prompts"]]
        assert holding == sorted(holding, reverse=True)
        assert any(holding) == ("first_words" in packed)
        sizes.append((len(holding), sum(holding), packed["first_words"]["k"] if any(holding) else 0))
    assert sizes[0] == (4, 4, 12)
    assert sizes == sorted(sizes, reverse=True)
    assert {k for _, _, k in sizes} >= {12, 3, 0}
    assert any(0 < n_holding < n_prompts for n_prompts, n_holding, _ in sizes)
    assert sizes[-1] == (1, 0, 0)
