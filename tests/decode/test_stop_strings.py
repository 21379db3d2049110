"""A stop string ends every door at the token that completes it, whatever tokens its letters are made of."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

import layerlens as ll
from layerlens.models.tiny import tiny_model, tiny_tokenizer


class Spelling(ll.Strategy):
    """Emits these tokens, whatever the model says."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._left = list(token_ids)

    def layers(self, n_layers: int, tied: bool = False) -> Sequence[int]:
        return (n_layers,)

    def choose(self, readouts: ll.Readouts) -> ll.Choice:
        logits = torch.zeros_like(readouts.logits([readouts.n_layers])[:, 0])
        token_id = self._left.pop(0)
        logits[:, token_id] = 1.0
        chosen = torch.full((len(logits),), token_id)
        return ll.Choice(logits, torch.full_like(chosen, readouts.n_layers), chosen)


TEXTS = [
    ("I say 没有 no", "没"),
    ("I say 没有 no", "没有"),
    ("so 🙂 it is", "🙂"),
    ("so 🙂🙂 it is", "🙂🙂 i"),
    ("déjà vu là", "là"),
    ("한국어를 말해요 yes", "말해요"),
    ("ends in ascii. yes", ". "),
    ("no such thing", "🙂"),
]


@pytest.mark.parametrize(("text", "stop"), TEXTS)
def test_every_door_ends_with_the_token_that_completes_a_stop_string(text: str, stop: str, tmp_path: Path) -> None:
    hf, tokenizer = tiny_model("llama"), tiny_tokenizer()
    model = ll.load(hf, tokenizer)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    complete = [n for n in range(1, len(ids) + 1) if stop in tokenizer.decode(ids[:n])]
    wanted = ids[: complete[0]] if complete else ids
    prompt = tokenizer("hello").input_ids
    given = torch.tensor([prompt])
    settings: dict[str, Any] = {"max_new_tokens": len(ids), "stop_strings": stop}
    with ll.decoding(model, Spelling(ids)) as log:
        emitted = hf.generate(given, attention_mask=torch.ones_like(given), tokenizer=tokenizer, **settings)
    found = ll.generate(model, "hello", strategy=Spelling(ids), **settings)
    run = ll.trace(model, ["hello"], strategy=Spelling(ids), out=tmp_path / "run", progress=False, **settings)
    assert emitted[0, len(prompt) :].tolist() == wanted
    assert log.steps["next_token_id"].tolist() == wanted
    assert found.token_ids == wanted
    assert run.tokens["next_token_id"].tolist() == wanted
    assert found.finish_reason == run.prompts["finish_reason"][0] == ("stop" if complete else "length")


def test_a_tokenizer_that_cannot_write_a_stop_string_is_one_sentence() -> None:
    alphabet = Tokenizer(WordLevel({"x": 0, "y": 1, "?": 2}, unk_token="?"))
    alphabet.pre_tokenizer = Split(Regex("."), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=alphabet, unk_token="?", eos_token="?")
    model = ll.load(tiny_model("llama"), tokenizer)
    with pytest.raises(ll.OptionError):
        ll.generate(model, "xyx", max_new_tokens=2, stop_strings=["z"])
