"""A model for images and text is traced through its language model: on a text prompt the same numbers as that alone."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

import layerlens as ll
from layerlens.models import tiny_model, tiny_tokenizer
from tests.invariants.laws import runs_agree

TEXTS = ["Hello there, you", "a", "What is this? And that"]


def pair(name):
    """A tiny model for images and text, and its language model alone with the same weights."""
    whole = tiny_model(name)
    alone = AutoModelForCausalLM.from_config(whole.config.text_config, dtype=torch.float32).eval()
    alone.model.load_state_dict(whole.model.language_model.state_dict())
    alone.lm_head.load_state_dict(whole.lm_head.state_dict())
    return whole, alone


@pytest.mark.parametrize("name", ["gemma3", "llava", "mistral3"])
def test_a_wrapper_gives_the_numbers_of_its_language_model(name, run_of):
    whole, alone = (ll.load(hf, tokenizer=tiny_tokenizer()) for hf in pair(name))
    assert whole.decoder is whole.hf.model.language_model
    assert (whole.family, whole.layer_kinds) == (alone.family, alone.layer_kinds)
    assert None not in whole.sublayers
    for mode in ("generate", "replay"):
        options = {"max_new_tokens": 5, "mode": mode, "batch_size": 3}
        runs_agree(run_of(whole, TEXTS, **options), run_of(alone, TEXTS, **options), 1e-6)
    for text in TEXTS:
        one, other = (ll.generate(m, text, strategy=ll.Valley(window=3), max_new_tokens=6) for m in (whole, alone))
        assert one.token_ids == other.token_ids
        assert one.steps["selected_layer"].tolist() == other.steps["selected_layer"].tolist()


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "qwen3_5", "llama4", "mllama"])
def test_a_checkpoint_of_a_wrapper_is_loaded(name, tmp_path):
    """Also where transformers loads its language model alone from it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        saved = AutoModelForImageTextToText.from_config(_whole_config(name), dtype=torch.float32).eval()
    saved.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = ll.load(tmp_path)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(model.hf(input_ids=ids).logits, saved(input_ids=ids).logits)
    assert model.n_layers >= 3


def _whole_config(name):
    from layerlens.models.tiny_configs import tiny_config

    return tiny_config(name)


def test_a_prompt_may_hold_no_picture(run_of):
    """The check at load does not ask for one by accident: the id that stands for pictures is left out."""
    for image_token_id in range(0, 307, 51):
        assert ll.load(tiny_model("gemma3", image_token_id=image_token_id), tokenizer=tiny_tokenizer()).n_layers == 6
