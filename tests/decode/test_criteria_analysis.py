"""analyses/criteria.py against full float64 logits, an explicit loop for Eq. 7, and the counts that follow from it."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from analyses import criteria as analysis
from layerlens.analysis.shares import share_interval
from layerlens.analysis.uncertainty import mean_interval, resample
from layerlens.models import tiny_model, tiny_tokenizer
from tests import reference

N_LAYERS, WINDOW, N_PROMPTS, N_NEW = 7, 5, 3, 18
QUESTIONS = Path(__file__).parents[2] / "data" / "sample.jsonl"


def shannon(probs):
    return -sum(p * math.log(p) for p in probs if p > 0)


def neg_sum_sq_logp(probs):
    return -sum(math.log(p) ** 2 for p in probs)


def max_prob(probs):
    return -max(probs)


def margin(probs):
    second, first = sorted(probs)[-2:]
    return second - first


NAIVE = {"shannon": shannon, "neg-sum-sq-logp": neg_sum_sq_logp, "max-prob": max_prob, "margin": margin}


def eq_7(values):
    """Steps back from the last of these values."""
    steps = 0
    while steps < len(values) - 1 and values[-2 - steps] < values[-1 - steps]:
        steps += 1
    return steps


def naive_states(hf, tokenizer):
    """For each prompt and emitted token: the float64 probabilities of the window's layers, [window][vocab]."""
    blocks, tail = reference.structure(hf)
    readout = reference.own_readout(hf, tail)
    found = []
    for line in QUESTIONS.read_text(encoding="utf-8").splitlines()[:N_PROMPTS]:
        ids = tokenizer(json.loads(line)["question"]).input_ids
        emitted = hf.generate(torch.tensor([ids]), max_new_tokens=N_NEW, do_sample=False)[0].tolist()
        seen = reference.watch(hf, blocks, torch.tensor([emitted[:-1]]))
        logits = torch.stack([readout(stream[0, len(ids) - 1 :]) for stream in seen.h_out[-WINDOW:]], dim=1)
        assert logits[:, -1].argmax(1).tolist() == emitted[len(ids) :]
        found.append(torch.softmax(logits, 2).tolist())
    return found


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The two tables, the text, the naive states, and a floor that a third of the tokens are below."""
    folder = tmp_path_factory.mktemp("tiny")
    hf, tokenizer = tiny_model("llama", num_hidden_layers=N_LAYERS, max_position_embeddings=512), tiny_tokenizer()
    hf.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    states = naive_states(hf, tokenizer)
    floor = float(np.quantile([shannon(state[-1]) for prompt in states for state in prompt], 0.34))
    sizes = ["--limit", str(N_PROMPTS), "--max-new-tokens", str(N_NEW), "--window", str(WINDOW)]
    floors = ["--floors", "0", str(floor), "100"]
    analysis.main([str(folder / "out"), "--model", str(folder / "model"), *sizes, *floors])
    tables = [pd.read_csv(folder / "out" / name, index_col=0) for name in ("criteria.csv", "entropy_floor.csv")]
    return *tables, (folder / "out" / "criteria.md").read_text(encoding="utf-8"), states, floor


def choices(states, criterion, floor=0.0):
    """For each prompt, for each state: the steps back and the arg-max where they end."""
    walks = []
    for prompt in states:
        walks.append([])
        for state in prompt:
            values = [NAIVE[criterion](probs) for probs in state]
            steps = 0 if floor and values[-1] < floor else eq_7(values)
            walks[-1].append((steps, int(np.argmax(state[-1 - steps]))))
    return walks


def check(row, measure, per_prompt):
    """The mean and its interval, from the values of each prompt's tokens."""
    sums = np.array([[float(sum(values))] for values in per_prompt])
    counts = np.array([[float(len(values))] for values in per_prompt])
    certain = row.name in ("shannon", 0.0) and measure in (
        "other_layer",
        "other_token",
        "skipped",
    )  # compared with itself
    rule = mean_interval if certain or measure in ("depth", "batched", "lazy") else share_interval
    expected = np.array(rule(sums, counts, resample(len(per_prompt)))).ravel()
    found = row[[measure, f"{measure}_low", f"{measure}_high"]].to_numpy(dtype=float)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9, err_msg=measure)
    assert found[0] == pytest.approx(sums.sum() / counts.sum(), rel=1e-5)
    assert (row["n_tokens"], row["n_prompts"]) == (counts.sum(), len(per_prompt))


def compared(walks, others, part):
    return [[a[part] != b[part] for a, b in zip(*pair, strict=True)] for pair in zip(walks, others, strict=True)]


def test_criteria_choose_as_a_naive_walk_does(measured):
    table, _, _, states, _ = measured
    assert list(table.index) == list(NAIVE)
    with_shannon = choices(states, "shannon")
    last = [[(0, int(np.argmax(state[-1]))) for state in prompt] for prompt in states]
    for criterion in NAIVE:
        walks = choices(states, criterion)
        row = table.loc[criterion]
        check(row, "valley", [[steps > 0 for steps, _ in prompt] for prompt in walks])
        check(row, "depth", [[steps for steps, _ in prompt] for prompt in walks])
        check(row, "other_layer", compared(walks, with_shannon, 0))
        check(row, "other_token", compared(walks, with_shannon, 1))
        check(row, "not_last_token", compared(walks, last, 1))
        assert row["replayed"] == 1
    others = table.loc[table.index != "shannon", ["other_layer", "other_token", "not_last_token"]]
    assert ((others > 0) & (others < 1)).all(axis=None), "a table in which nothing differs would prove little"
    assert table["depth"].nunique() == len(NAIVE)


def test_floors_skip_as_a_naive_walk_does(measured):
    _, table, _, states, floor = measured
    np.testing.assert_allclose(table.index, [0, floor, 100], rtol=1e-5)
    exact = choices(states, "shannon")
    for number, at in enumerate((0.0, floor, 100.0)):
        walks, row = choices(states, "shannon", at), table.iloc[number]
        skipped = [[shannon(state[-1]) < at for state in prompt] for prompt in states]
        check(row, "skipped", skipped)
        check(row, "other_layer", compared(walks, exact, 0))
        check(row, "other_token", compared(walks, exact, 1))
        check(row, "batched", [[1 if skip else WINDOW for skip in prompt] for prompt in skipped])
        # a lazy scan reads the last layer, every layer it walks to, and the one that stops it
        reads = [[min(2 + steps, WINDOW) for steps, _ in prompt] for prompt in walks]
        check(
            row,
            "lazy",
            [[1 if s else n for s, n in zip(*pair, strict=True)] for pair in zip(skipped, reads, strict=True)],
        )
    assert 0 < table["other_layer"].iloc[1] < table["other_layer"].iloc[2]


def test_the_text_says_what_the_tables_say(measured):
    criteria, _, text, states, _ = measured
    lines = text.splitlines()
    row = criteria.loc["margin"]
    cells = next(line for line in lines if line.startswith("| margin |")).split(" | ")
    assert cells[1] == f"{100 * row['valley']:.2f} % [{100 * row['valley_low']:.2f}, {100 * row['valley_high']:.2f}]"
    assert cells[2] == f"{row['depth']:.3f} [{row['depth_low']:.3f}, {row['depth_high']:.3f}]"
    cells = next(line for line in lines if line.startswith("| 100.0 |")).split(" | ")
    assert cells[1].startswith("100.00 % [")
    assert float(cells[1][10:].split(",")[0]) < 100, "every token of so few prompts is not every token"
    assert cells[4:6] == ["1.000 [1.000, 1.000]"] * 2
    n_tokens = sum(map(len, states))
    assert f"the same {n_tokens:,} states" in text
    assert "teacher-forced" in text
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert widths == {len(cells) + 1}


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [(["--floors", "-1"], "entropy_floor -1.0"), (["--window", "8"], "1..7"), (["--limit", "0"], "from 1")],
)
def test_what_does_not_fit_is_refused_in_one_sentence(tmp_path, capsys, arguments, advice):
    tiny_model("llama", num_hidden_layers=N_LAYERS).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit):
        analysis.main([str(tmp_path / "out"), "--model", str(tmp_path / "model"), *arguments])
    assert advice in capsys.readouterr().err
