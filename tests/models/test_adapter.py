"""Blocks, decoder and readout found by structure, and true words for what has another structure."""

import pytest
import torch

import layerlens as ll
from layerlens.models import tiny_model, tiny_tokenizer
from tests.conftest import tiny
from tests.refusals import refused


def loaded(name, **changes):
    return ll.load(tiny_model(name, **changes), tokenizer=tiny_tokenizer())


def refusal(name, **changes):
    with pytest.raises(ll.ModelError) as caught:
        loaded(name, **changes)
    return str(caught.value)


@pytest.mark.parametrize("family", ["bart", "pegasus", "whisper"])
def test_the_decoder_half_of_a_translator_has_its_own_number_of_layers(family):
    """Their configs say num_hidden_layers of the encoder."""
    model = tiny(family)
    assert (model.hf.config.num_hidden_layers, model.n_layers) == (3, 4)
    assert type(model.decoder).__name__.endswith("Decoder")


@pytest.mark.parametrize(
    ("family", "decoder"),
    [
        ("llama4_text", "Llama4TextModel"),
        ("modernbert-decoder", "ModernBertDecoderModel"),
        ("git", "GitModel"),  # its blocks lie in an encoder within
        ("longcat_flash", "LongcatFlashModel"),  # two attentions a block: its config counts 8 layers
        ("opt", "OPTDecoder"),
    ],
)
def test_blocks_are_found_wherever_they_lie(family, decoder):
    model = tiny(family)
    assert model.n_layers == 4
    assert type(model.decoder).__name__ == decoder


def test_blocks_that_do_not_run_on_text_are_no_layers():
    """Of Mllama's four layers one reads pictures only."""
    model = tiny("mllama")
    assert (model.hf.config.num_hidden_layers, model.n_layers) == (4, 3)


def test_a_decoder_that_needs_the_whole_model_around_it_is_not_called_alone(run_of):
    hf = tiny_model("llama")
    forward = hf.forward
    hf.forward = lambda input_ids, **inputs: forward(inputs_embeds=2 * hf.model.embed_tokens(input_ids), **inputs)
    model = ll.load(hf, tokenizer=tiny_tokenizer())
    assert model.decoder is hf
    generated, replayed = (run_of(model, ["abc"], max_new_tokens=3, mode=mode) for mode in ("generate", "replay"))
    torch.testing.assert_close(
        torch.tensor(generated.layers("norm_ratio")), torch.tensor(replayed.layers("norm_ratio")), atol=5e-5, rtol=5e-5
    )


def test_a_head_that_is_padded_to_a_round_size_is_read_without_the_padding():
    model = loaded("inkling_text", unpadded_vocab_size=300)
    assert (model.head.weight.shape[0], model.n_vocab) == (307, 300)


def test_a_wrapper_can_leave_out_what_the_config_of_its_language_model_says():
    model = tiny("cohere2_vision")
    assert model.hf.config.text_config.logit_scale == 0.0625
    assert model.unembed.scale == 1.0


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("bert", "is_decoder=False"),
        ("xlnet", "not causal"),
        ("cpmant", "not causal"),
        ("deepseek_v4", "[2, 7, 4, 64]"),
        ("gemma3n_text", "[4, 2, 7, 64]"),
        ("qwen4_exp_text", "[2, 7, 256]"),
        ("prophetnet", "not causal"),
        ("inkling2_text", "last block"),
        ("reformer", "last block"),
        ("hrm_text", "model.L_module.layers, model.H_module.layers"),
        ("blt", "6 lists"),
        ("xlm", "4 lists"),
        ("musicgen", "4 unembeddings"),
        ("blip-2", "'pixel_values'"),
    ],
)
def test_what_is_refused_is_refused_for_what_it_is(family, words):
    try:
        hf = tiny_model(family)
    except ll.ModelError as error:  # of a transformers that lacks the family, or has a mistake in it
        pytest.skip(str(error))
    with refused(ll.ModelError, problem=words):
        ll.load(hf, tokenizer=tiny_tokenizer())


def test_an_encoder_that_is_made_a_decoder_is_traced():
    assert loaded("bert", is_decoder=True).n_layers == 4


def test_blocks_that_run_several_times_are_refused():
    hf = tiny_model("llama")
    forward = hf.model.forward
    hf.model.forward = lambda *args, **inputs: (forward(*args, **inputs), forward(*args, **inputs))[1]
    with refused(ll.ModelError, given="LlamaForCausalLM", problem="2 times"):
        ll.load(hf, tokenizer=tiny_tokenizer())


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("rwkv", {}, "as text"),
        ("bart", {}, "counts padding"),
        ("llama4_text", {"floor_scale": 4}, "counts padding"),  # in the temperature of attention
    ],
)
def test_why_prompts_of_different_lengths_cannot_share_a_batch(family, changes, words, run_of):
    model = loaded(family, **changes)
    with refused(ll.OptionError, "batch_size", problem=words):
        run_of(model, ["a longer text", "short"], max_new_tokens=2, batch_size=2)
    assert len(run_of(model, ["of length 1", "of length 2"], max_new_tokens=2, batch_size=2).positions) == 4


@pytest.mark.parametrize(
    ("rope", "length"),
    [
        ({"rope_type": "default"}, 64),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}, 64),  # the config counts it
        ({"rope_type": "yarn", "factor": 1.5}, 96),
        ({"rope_type": "dynamic", "factor": 2.0}, 128),
        ({"rope_type": "linear", "factor": 8.0}, 64),  # Gemma 3's config counts the stretch, others do not
        (
            {
                **{"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32},
                **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
            },
            64,
        ),
        (
            {
                **{"rope_type": "longrope", "factor": 8.0, "original_max_position_embeddings": 32},
                **{"short_factor": [1.0] * 6, "long_factor": [2.0] * 6},
            },
            64,
        ),
    ],
    ids=lambda value: value["rope_type"] if isinstance(value, dict) else str(value),
)
def test_the_context_is_as_long_as_rotary_positions_are_stretched(rope, length):
    model = loaded("qwen2", max_position_embeddings=64, rope_parameters={"rope_theta": 10000.0, **rope})
    assert model.context_length == length
    read = ll.generate(model, "x" * (length - 2), max_new_tokens=2)
    ids = torch.tensor([model.tokenizer("x" * (length - 2)).input_ids])
    there = model.hf.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert read.token_ids == there[0, length - 2 :].tolist()
    with refused(ll.PromptError, "max_new_tokens", problem=f"{length:,}"):
        ll.generate(model, "x" * (length - 1), max_new_tokens=2)


def test_a_stretch_of_full_attention_beside_sliding_windows():
    kinds = {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    kinds["full_attention"] = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
    model = loaded("olmo3", max_position_embeddings=64, rope_parameters=kinds)
    assert model.context_length == 256
