"""Gemma 2 caps its scores of attention, whatever kernel the installed transformers would choose."""

import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM

import layerlens as ll
from layerlens.errors import Notice
from layerlens.models import tiny_model, tiny_tokenizer

# so low that a model without the cap gives other logits
CAP = {"attn_logit_softcapping": 0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("gemma2")
    tiny_model("gemma2", **CAP).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def capped(hf, ids):
    """The logits with the cap, and without it, in float64."""
    with torch.no_grad():
        logits = hf.double()(ids).logits
        for block in hf.model.layers:
            block.self_attn.attn_logit_softcapping = None
        hf.config.attn_logit_softcapping = None
        return logits, hf(ids).logits


def test_the_scores_of_a_loaded_model_are_capped(folder):
    ids = torch.arange(5, 25).unsqueeze(0)
    with_cap, without = capped(AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager"), ids)
    assert (with_cap - without).abs().max() > 0.01
    with torch.no_grad():
        for model in (ll.load(folder), ll.load(tiny_model("gemma2", **CAP), tokenizer=tiny_tokenizer())):
            torch.testing.assert_close(model.hf(ids).logits.double(), with_cap, rtol=0, atol=1e-4)


def test_a_model_in_memory_that_leaves_the_cap_out_has_a_notice():
    hf = tiny_model("gemma2", **CAP)
    try:
        hf.set_attn_implementation("sdpa")
    except ValueError:
        pytest.skip("this transformers refuses the kernel that leaves the cap out")
    with pytest.warns(Notice, match="soft-cap"):
        ll.load(hf, tokenizer=tiny_tokenizer())
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        ll.load(tiny_model("gemma3_text"), tokenizer=tiny_tokenizer())
