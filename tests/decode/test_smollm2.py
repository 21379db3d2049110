"""Confident Decoding on a real model, token for token, against a plain loop with whole float32 logits."""

import os

import pytest

import layerlens as ll
from layerlens.decode.batch import decode_batch
from layerlens.decode.chooser import Chooser
from tests.decode import plain
from tests.thorough import combined

# the plain loop takes ten minutes at full length: LAYERLENS_TOKENS=200 asks for it
N_TOKENS = int(os.environ.get("LAYERLENS_TOKENS", "8"))


@pytest.fixture(scope="module")
def prompts(smollm2):
    texts = [prompt.content for prompt in ll.dataset("sample", limit=3).prompts]
    return [
        smollm2.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
        ).input_ids
        for text in texts
    ]


@pytest.mark.parametrize(("window", "criterion"), combined([10, 5, 2], ["shannon", "neg-sum-sq-logp"], n=2))
def test_valley_is_the_plain_loop(smollm2, prompts, window, criterion):
    tokens, layers = plain.decode(smollm2.hf, prompts, N_TOKENS, window, criterion, double=False)
    never = smollm2.n_vocab - 1  # the plain loop does not stop either
    options = ll.GenerateOptions(max_new_tokens=N_TOKENS, eos_token_id=never)
    chooser = Chooser(smollm2, ll.Valley(window=window, criterion=criterion))
    decoded = decode_batch(smollm2, prompts, chooser, options, 0)
    assert decoded.outputs == tokens
    assert [decisions.selected_layer.tolist() for decisions in decoded.decisions] == layers
    assert len({layer for row in layers for layer in row}) > 1
