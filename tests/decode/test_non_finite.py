"""Logits that are no numbers: no door makes a token of them, and rows beside them stay what they were."""

import json
import math

import numpy as np
import pytest
import torch

import layerlens as ll
from layerlens.decode.strategies import Choice, Last, Strategy
from layerlens.errors import ModelError, Notice
from layerlens.models.tiny import tiny_model, tiny_tokenizer
from layerlens.records.evaluation import read_answers
from tests.needs_inspect import needs_inspect
from tests.refusals import refused

PROMPTS = ["abc", "xyz", "a longer one"]
STRATEGIES = [ll.Last(), ll.Valley(window=3), ll.Fixed(1), ll.DoLa()]


def poisoned(token_id: int, value: float = math.nan):
    """A llama, and another whose embedding of one token is no number."""
    clean, broken = (
        ll.load(tiny_model("llama", tie_word_embeddings=False), tokenizer=tiny_tokenizer()) for _ in range(2)
    )
    with torch.no_grad():
        broken.hf.model.embed_tokens.weight[token_id] = value
    return clean, broken


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: type(strategy).__name__)
@pytest.mark.parametrize("options", [{}, {"temperature": 0.8}, {"no_repeat_ngram_size": 2}], ids=str)
def test_a_text_ends_where_its_logits_are_no_numbers_and_its_neighbours_go_on(strategy, options):
    model, broken = poisoned(tiny_tokenizer()("y").input_ids[0])
    if "no_repeat_ngram_size" in options:
        for one in (model, broken):
            one.hf.generation_config.no_repeat_ngram_size = 2
        options = {}
    whole = ll.generate(model, PROMPTS, strategy=strategy, max_new_tokens=5, batch_size=3, **options)
    with pytest.warns(Notice, match="prompt 1,"):
        found = ll.generate(broken, PROMPTS, strategy=strategy, max_new_tokens=5, batch_size=3, **options)
    assert [one.finish_reason for one in found] == ["length", "non_finite", "length"]
    assert [one.token_ids for one in found] == [whole[0].token_ids, [], whole[2].token_ids]
    assert (found[1].text, len(found[1].steps)) == ("", 0)


def emitted_in_the_middle(model) -> tuple[list[int], int]:
    """What the model answers to "abc", and the place of the first of these tokens that is new and can be poisoned."""
    ids = ll.generate(model, "abc", max_new_tokens=8).token_ids
    known = set(model.tokenizer("abc").input_ids)
    return ids, next(place for place, one in enumerate(ids) if place and one not in known | set(ids[:place]))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("mode", ["generate", "replay"])
def test_tokens_before_the_first_that_is_none_are_kept(value, mode, run_of):
    ids, place = emitted_in_the_middle(poisoned(0)[0])
    broken = poisoned(ids[place], value)[1]
    with pytest.warns(Notice, match="prompt 0,"):
        found = ll.generate(broken, "abc", max_new_tokens=8)
    assert (found.token_ids, found.finish_reason) == (ids[: place + 1], "non_finite")
    assert found.steps["next_token_id"].tolist() == found.token_ids

    run = run_of(broken, ["abc"], max_new_tokens=8, mode=mode)
    assert run.prompts["finish_reason"].tolist() == ["non_finite"]
    assert run.prompts["n_generated_tokens"].tolist() == [place + 1]
    assert run.positions["next_token_id"].tolist() == found.token_ids
    assert run.positions["is_generated"].all()
    assert np.isfinite(run.layers("entropy")).all()


def test_a_trace_of_a_prompt_without_a_token_says_that_nothing_was_emitted(run_of):
    broken = poisoned(tiny_tokenizer()("y").input_ids[0])[1]
    run = run_of(broken, ["xyz"], max_new_tokens=4)
    assert run.positions["is_generated"].tolist() == [False]
    assert run.positions["next_token_id"].isna().all()
    assert run.prompts["finish_reason"].tolist() == ["non_finite"]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: type(strategy).__name__)
@pytest.mark.parametrize("do_sample", [False, True])
def test_the_drop_in_names_the_row(strategy, do_sample):
    broken = poisoned(tiny_tokenizer()("y").input_ids[0])[1]
    inputs = broken.tokenizer(["abc", "xyz"], return_tensors="pt", padding=True)
    with ll.decoding(broken, strategy) as log:
        with refused(ModelError, given=1, problem="0 new tokens"):
            broken.hf.generate(**inputs, max_new_tokens=3, do_sample=do_sample)
        assert len(log) == 0
        ids = broken.hf.generate(**broken.tokenizer(["abc"], return_tensors="pt"), max_new_tokens=3)
    assert ids.shape[1] == 6
    assert len(log) == 3


def test_the_drop_in_passes_over_rows_that_have_ended():
    """A row that has ended goes on with padding, which here is no number; nothing of it is emitted."""
    hf = tiny_model("llama", tie_word_embeddings=False)
    tokenizer = tiny_tokenizer()
    inputs = tokenizer(["abc", "xyz"], return_tensors="pt", padding=True)
    plain = hf.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=300)[:, 3:]
    end = int(plain[0, 0])
    assert end not in plain[1].tolist()
    assert 300 not in plain
    with torch.no_grad():
        hf.model.embed_tokens.weight[300] = math.nan
    model = ll.load(hf, tokenizer=tokenizer)
    with ll.decoding(model, ll.Last()) as log:
        hf.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=end, pad_token_id=300)
    assert log.steps.groupby("row")["next_token_id"].apply(list).tolist() == [[end], plain[1].tolist()]


class Loud(Strategy):
    """The last layer's logits, a million times as large: more than float16 holds."""

    def layers(self, n_layers, tied=False):
        return [n_layers]

    def choose(self, readouts):
        choice = Last().choose(readouts)
        return Choice(choice.logits * 1e6, choice.selected_layer, choice.last_token_id)


def test_logits_that_the_models_type_does_not_hold():
    model = ll.load(tiny_model("llama").half(), tokenizer=tiny_tokenizer())
    with pytest.warns(Notice, match="prompt 0,.* float16"):
        assert ll.generate(model, "abc", strategy=Loud(), max_new_tokens=2).token_ids == []
    wide = ll.load(tiny_model("llama"), tokenizer=tiny_tokenizer())
    assert len(ll.generate(wide, "abc", strategy=Loud(), max_new_tokens=2).token_ids) == 2


@needs_inspect
@pytest.mark.parametrize("answer", ["1", "words"])
def test_an_ablation_counts_no_answer_that_is_none(tmp_path, answer):
    broken = poisoned(tiny_tokenizer()("y").input_ids[0])[1]
    rows = tmp_path / "rows.jsonl"
    items = [{"id": text, "question": text, "answer": answer} for text in ("abc", "xyz")]
    rows.write_text("".join(json.dumps(item) + "\n" for item in items))
    options = {"arms": ["valley"], "p": [0.5, 1], "epochs": 2, "window": 3, "max_new_tokens": 2}
    table = ll.ablate(broken, ["sample"], out=tmp_path / "out", data_files={"sample": rows}, **options)
    answers = read_answers(tmp_path / "out").to_pandas()
    of_none = answers["item"] == "xyz"
    assert of_none.sum() == 1 + 2 + 1
    assert set(answers["outcome"][of_none]) == {"error"}
    assert answers["score"][of_none].isna().all()
    assert set(answers["outcome"][~of_none]) == {"scored"}
    assert answers["score"][~of_none].notna().all()
    assert (table["n_items"] == 1).all()
    acting = table[table["p"].between(0.1, 0.9) & (table["arm"] == "valley")]
    assert (acting["n_answers"].item(), acting["unscored"].item()) == (2, 2)


def test_the_command_line_says_it(cli, tmp_path):
    broken = poisoned(tiny_tokenizer()("y").input_ids[0])[1]
    broken.hf.save_pretrained(tmp_path)
    broken.tokenizer.save_pretrained(tmp_path)
    with pytest.warns(Notice, match="prompt 0,.* --dtype"):
        code, out, _ = cli(
            "generate", "--model", tmp_path, "--prompt", "xyz", "--strategy", "last", "--max-new-tokens", 9
        )
    assert code == 0
    assert "last: no tokens" in out
