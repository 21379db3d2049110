"""Two runs on one page: their prompts in pairs, their tokens aligned as a plain reading of the texts says."""

import json

import numpy as np
import pytest

from layerlens.errors import OptionError, RunError
from layerlens.report import packing
from layerlens.report.beside import Text, counterparts, pack_beside, parting, text_of
from tests.made_up_run import write_run
from tests.refusals import refused
from tests.report.test_packing import inflated


def plain_counterparts(text, other):
    """Character by character: which token of the other text has the character a token begins with."""

    def starts(one):
        generated_from = sum(len(token) for token in one.tokens[: one.n_given])
        places, at = [], -generated_from
        for token in one.tokens:
            places.append(at)
            at += len(token)
        return places

    ours, theirs, found = starts(text), starts(other), []
    for start in ours:
        before = [place for place, its in enumerate(theirs) if its <= start]
        found.append(before[-1] if before else 0)
    return found


def plain_parting(text, other):
    """The texts read sign by sign until they differ; then tokens are counted until that sign is reached."""
    written = ["".join(one.tokens[one.n_given :]) for one in (text, other)]
    at = 0
    while at < len(written[0]) and at < len(written[1]) and written[0][at] == written[1][at]:
        at += 1
    if at == len(written[0]) == len(written[1]):
        return None
    found = []
    for one in (text, other):
        read, token = 0, one.n_given
        while token < len(one.tokens) and read + len(one.tokens[token]) <= at:
            read += len(one.tokens[token])
            token += 1
        found.append(token)
    return tuple(found)


def cut(letters, random):
    """A text in pieces of 1 to 4 letters."""
    pieces = []
    while letters:
        n = int(random.integers(1, 5))
        pieces, letters = [*pieces, letters[:n]], letters[n:]
    return pieces


@pytest.mark.parametrize("seed", range(40))
def test_alignment_is_that_of_a_plain_reading(seed):
    random = np.random.default_rng(seed)
    shared, given = ("".join(random.choice(list("ab c"), random.integers(0, 20))) for _ in range(2))
    texts = []
    for _ in range(2):
        rest = "".join(random.choice(list("ab c"), random.integers(0, 15)))
        before = cut(given, random) if seed % 2 else []
        texts.append(Text([*before, *cut(shared + rest + "x", random)], len(before)))
    for one, other in (texts, texts[::-1]):
        assert counterparts(one, other) == plain_counterparts(one, other)
        assert parting(one, other) == plain_parting(one, other)


def test_texts_part_where_they_first_say_another_thing():
    ours = Text(["Q", ":", "The", " sky", " is", " blue", "."], 2)
    for other, expected in (
        (ours, None),
        (Text(["Q:", "The sky", " is blue", "."], 1), None),
        (Text(["Q:", "The sky", " is", " grey"], 1), (5, 3)),
        (Text(["Q", ":", "The", " skyline"], 2), (4, 3)),
        (Text(["The", " sky"], 0), (4, 2)),
        (Text(["The", " sky", " is", " blue", ".", "</s>"], 0), (7, 5)),
        (Text(["The", " sky", " is", " blue", "!"], 5), None),
    ):
        assert parting(ours, other) == expected
        assert parting(other, ours) == (expected and expected[::-1])


def test_a_text_beside_itself_is_aligned_token_by_token():
    tokens = ["", "a", "", "", "b", "cd", "", ""]
    for n_given in range(len(tokens) + 1):
        text = Text(tokens, n_given)
        assert counterparts(text, text) == list(range(len(tokens)))


def test_tokens_that_say_nothing_belong_together_from_the_last():
    assert counterparts(Text(["", "", "ab"], 0), Text(["", "ab"], 0)) == [0, 0, 1]
    assert counterparts(Text(["", "ab"], 0), Text(["", "", "ab"], 0)) == [1, 2]
    assert counterparts(Text(["a", "b", "c"], 0), Text(["ab"], 0)) == [0, 0, 0]
    assert counterparts(Text(["abc"], 0), Text(["x", "y", "abc"], 2)) == [2]
    assert counterparts(Text(["x", "y", "abc"], 2), Text(["abc"], 0)) == [0, 0, 0]


WORDS = {0: "The", 1: " sky", 2: " is", 3: " blue", 4: " grey", 5: "The sky", 6: ".", 7: "Q:"}


def text(ids, n_layers=4, n_given=0):
    ids = np.asarray(ids, np.int32)
    return {
        "entropy": np.random.default_rng(len(ids)).random((len(ids), n_layers)),
        "next_token_id": ids,
        "is_generated": np.arange(len(ids)) >= n_given,
    }


@pytest.fixture
def runs(tmp_path):
    ours = {"a": text([7, 0, 1, 2, 3, 6], n_given=1), "b": text([0, 1]), "only ours": text([0])}
    theirs = {"B": text([5], 6), "A": text([5, 2, 4], 6), "only theirs": text([0], 6)}
    given = {"a": "why is the sky blue?", "A": "why is the sky blue?", "b": "look up", "B": "look up"}
    return (
        write_run(tmp_path / "ours", ours, words=WORDS, texts=given),
        write_run(tmp_path / "theirs", theirs, words=WORDS, texts=given, strategy="valley"),
    )


def whole_numbers(content):
    return np.frombuffer(inflated(content), np.int32).tolist()


def test_the_common_prompts_are_packed_in_pairs(runs):
    packed = pack_beside(*runs)
    beside = packed["beside"]
    assert [prompt["id"] for prompt in packed["prompts"]] == ["a", "b"]
    assert [prompt["id"] for prompt in beside["prompts"]] == ["A", "B"]
    assert (packed["n_layers"], beside["n_layers"]) == (4, 6)
    assert packed["unpaired"] == 2
    first, second = packed["pairs"]
    assert whole_numbers(first["there"]) == [0, 0, 0, 1, 2, 2]  # Q: The| sky| is| blue| .
    assert whole_numbers(first["back"]) == [1, 3, 4]
    assert first["parting"] == [4, 2]
    assert second["parting"] is None
    assert whole_numbers(second["back"]) == [0]
    json.dumps(packed, allow_nan=False)


def test_what_is_cut_is_aligned_with_what_is_shown(runs, monkeypatch):
    monkeypatch.setattr(packing, "TOKENS_SHOWN", 2)
    pair = pack_beside(*runs)["pairs"][0]
    assert whole_numbers(pair["there"]) == [0, 0]
    assert whole_numbers(pair["back"]) == [1, 1]
    assert pair["parting"] == [None, None]


def test_both_runs_hold_the_same_prompts_where_space_is_short(tmp_path, monkeypatch):
    prompts = {f"p{index}": text([0] * 60, 12) for index in range(6)}
    runs = [write_run(tmp_path / name, prompts) for name in ("one", "two")]
    for budget in (200_000, 60_000, 10):
        monkeypatch.setattr(packing, "BUDGET", budget)
        packed = pack_beside(*runs)
        held = [[prompt["id"] for prompt in one["prompts"]] for one in (packed, packed["beside"])]
        assert held[0] == held[1] == list(prompts)[: len(held[0])]
        assert len(packed["pairs"]) == len(held[0]) == 6 - packed["prompts_left_out"]
    assert len(held[0]) == 1


def test_texts_begin_where_the_model_began_to_write(runs):
    assert text_of(runs[0], "a") == Text(["Q:", "The", " sky", " is", " blue", "."], 1)
    assert text_of(runs[1], "A").starts == [0, 7, 10]
    assert text_of(runs[0], "a").starts == [-2, 0, 3, 7, 10, 15]


def test_chosen_prompts_are_the_first_runs(runs):
    assert [prompt["id"] for prompt in pack_beside(*runs, ["b"])["beside"]["prompts"]] == ["B"]
    with refused(OptionError, "prompt_ids", problem="'B'"):
        pack_beside(*runs, ["B"])
    with refused(RunError, given=runs[0].path, problem="no prompt in common"):
        pack_beside(*runs, ["only ours"])
