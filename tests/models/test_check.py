"""The check at load refuses what cannot be traced truthfully, and says what did not match."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

import layerlens as ll
from layerlens.models import FAMILIES, adapt, check, checked, probing, tiny_model, tiny_names, tiny_tokenizer
from layerlens.models.families import Family
from tests.conftest import tiny
from tests.reference import MIXER_ALONE
from tests.refusals import refused


def adapted(family, **changes):
    return adapt(tiny_model(family, **changes), tiny_tokenizer(), f"tiny {family}")


@pytest.mark.parametrize("family", tiny_names())
def test_a_readout_without_the_final_norm_is_refused(family):
    model = adapted(family)
    wrong = replace(model, unembed=replace(model.unembed, tail=model.unembed.tail[1:]))
    with pytest.raises((ll.ModelError, RuntimeError), match=r"readout check|mat1"):
        checked(wrong)


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("gemma2", {"softcap": None}),
        ("gemma4_text", {"softcap": 4.0}),
        ("granite", {"scale": 1.0}),
        ("cohere2", {"scale": 0.6}),
        ("gptj", {"bias": None}),
    ],
)
def test_a_wrong_head_is_refused(family, change):
    model = adapted(family)
    with refused(ll.ModelError, problem="readout check"):
        checked(replace(model, unembed=replace(model.unembed, **change)))


def test_a_model_that_sees_the_future_is_refused():
    model = adapted("llama")
    for block in model.blocks:
        block.self_attn.is_causal = False
        block.self_attn.forward = _bidirectional(block.self_attn.forward)
    with pytest.raises(ll.ModelError, match="not causal"):
        checked(model)


@pytest.mark.parametrize(
    ("worst", "option", "words"),
    [(1e-4, None, None), (1.1e-3, None, "1.1e-03"), (torch.nan, "dtype", "infinite"), (torch.inf, "dtype", "infinite")],
)
def test_earlier_logits_that_move_by_no_number_are_refused_like_those_that_move_far(worst, option, words):
    model = tiny("llama")
    with refused(ll.ModelError, option, model.source, problem=words) if words else nullcontext():
        check.refuse_not_causal(model, worst)


def test_blocks_that_do_not_hand_the_stream_on_are_refused():
    model = adapted("llama")
    model.blocks[2].register_forward_pre_hook(lambda _, args: (args[0] * 1.5, *args[1:]))
    with refused(ll.ModelError, given="tiny llama", problem="block 2"):
        checked(model)


def test_several_streams_are_refused():
    model = adapted("llama")
    for block in model.blocks:
        block.register_forward_hook(lambda _, args, out: torch.stack([args[0], out]))
        block.register_forward_pre_hook(lambda _, args: (args[0][-1] if args[0].ndim == 4 else args[0], *args[1:]))
    with pytest.raises(ll.ModelError, match="residual stream"):
        checked(model)


def test_nan_weights_are_refused():
    hf = tiny_model("llama")
    hf.model.norm.weight.data.fill_(torch.nan)
    with refused(ll.ModelError, "dtype", "LlamaForCausalLM"):
        ll.load(hf, tokenizer=tiny_tokenizer())


def test_a_model_without_a_head_is_refused():
    with pytest.raises(ll.ModelError, match="no unembedding"):
        ll.load(tiny_model("llama").model, tokenizer=tiny_tokenizer())


@pytest.mark.parametrize(
    ("family", "wrong"),
    [
        ("llama", Family(middle="mlp")),
        ("gemma2", Family(middle="post_attention_layernorm")),
        ("olmo2", Family(middle="post_attention_layernorm")),
        ("gptj", Family(middle="mlp", attention=("attn",))),
        ("llama", Family(parallel=True)),
        ("gemma4_text", Family(middle="pre_feedforward_layernorm")),
    ],
)
def test_parts_that_do_not_add_up_are_left_out(monkeypatch, family, wrong):
    monkeypatch.setitem(FAMILIES, family, wrong)
    assert checked(adapted(family)).sublayers == [None] * adapted(family).n_layers
    monkeypatch.undo()
    assert None not in checked(adapted(family)).sublayers


def test_blocks_that_norm_the_stream_itself_have_no_parts(run_of):
    """OPT-350M: nothing is added to the stream as it is, so the parts are null and the rest is recorded."""
    model = ll.load(tiny_model("opt", do_layer_norm_before=False), tokenizer=tiny_tokenizer())
    run = run_of(model, ["abc"], max_new_tokens=2)
    assert run.tokens["attn_ratio"].map(lambda values: all(value != value for value in values)).all()
    assert (run.layers("norm_ratio") > 0).all()


def test_a_mixture_of_experts_is_told_from_a_dense_model():
    assert tiny("qwen3_moe").mlp_kinds == ["dense", "moe", "dense", "moe"]
    assert tiny("llama").mlp_kinds == ["dense"] * 4
    assert tiny("gemma3_text").layer_kinds == ["sliding"] * 5 + ["full"]
    assert tiny("mistral").layer_kinds == ["sliding"] * 4


def test_a_model_shows_itself_in_five_lines():
    lines = repr(tiny("qwen3_5_moe_text")).splitlines()
    assert len(lines) == 5
    assert "8 layers: 6 linear, 2 full, 8 with experts" in lines[1]


def _bidirectional(forward):
    def without_mask(*args, **kwargs):
        batch, length = kwargs["hidden_states"].shape[:2]
        kwargs["attention_mask"] = torch.zeros(batch, 1, length, length)
        return forward(*args, **kwargs)

    return without_mask


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("family", "change"), [("gemma2", {"softcap": None}), ("granite", {"scale": 0.98 / 3.0})])
def test_half_precision_does_not_hide_a_wrong_head(family, change, dtype):
    """Rounding falls to both sides; a soft-cap or a scale that is two per cent off does not."""
    model = adapt(tiny_model(family).to(dtype), tiny_tokenizer(), family)
    assert checked(model).n_layers == 4
    with refused(ll.ModelError, problem="readout check"):
        checked(replace(model, unembed=replace(model.unembed, **change)))


@pytest.mark.parametrize("family", tiny_names())
def test_every_family_passes_in_bfloat16(family):
    model = checked(adapt(tiny_model(family).to(torch.bfloat16), tiny_tokenizer(), family))
    assert (None in model.sublayers) == (family in MIXER_ALONE)


@pytest.mark.parametrize("vocab", [1, 2, 3, 9])
def test_a_tiny_vocabulary_can_be_probed(vocab):
    model = checked(adapted("llama", vocab_size=vocab, pad_token_id=0, bos_token_id=0, eos_token_id=0))
    assert model.n_vocab == vocab


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler that is imported
def test_a_model_changed_after_loading_is_refused(run_of):
    def loaded():
        return ll.load(tiny_model("gpt2"), tokenizer=tiny_tokenizer())

    training, compiled, other_head = loaded(), loaded(), loaded()
    training.hf.train()
    compiled.hf.compile()
    other_head.hf.lm_head = nn.Linear(48, 307, bias=False)
    for model, words in (
        (training, "training mode"),
        (compiled, "is compiled"),
        (other_head, "unembedding is another"),
    ):
        with pytest.raises(ll.ModelError, match=words):
            run_of(model, ["abc"], max_new_tokens=1)
    with pytest.raises(ll.ModelError, match="is compiled"):
        ll.load(compiled.hf, tokenizer=tiny_tokenizer())


@pytest.mark.parametrize("harm", ["nan", "second text"])
def test_a_decoder_that_is_wrong_when_called_alone_is_not_believed(harm):
    """In its last block alone, or at one token of the second text alone."""
    hf, inside = tiny_model("llama"), []
    hf.register_forward_pre_hook(lambda *_: inside.append(True))
    hf.register_forward_hook(lambda *_: inside.clear())
    last_token = probing.probe(tiny("llama"))[1, -1]

    def spoil(_module, args, output):
        if inside:
            return output
        if harm == "nan":
            return output * torch.nan
        return torch.where((args[0] == last_token).unsqueeze(-1), 2 * output, output)

    (hf.model.layers[-1].mlp if harm == "nan" else hf.model.embed_tokens).register_forward_hook(spoil)
    model = ll.load(hf, tokenizer=tiny_tokenizer())
    assert model.decoder is model.hf


@pytest.mark.parametrize("size", [1.0, 3000.0])
def test_parts_that_do_not_add_up_are_found_beside_a_token_of_any_size(size):
    hf = tiny_model("llama")
    first = probing.probe(tiny("llama"))[0, 0]
    with torch.no_grad():
        hf.model.embed_tokens.weight[first] *= size
    intact = ll.load(hf, tokenizer=tiny_tokenizer())
    assert all(sublayer is not None for sublayer in intact.sublayers)
    hf.model.layers[1].register_forward_hook(lambda _, args, output: output + 0.3 * args[0].clamp(-1, 1))
    assert ll.load(hf, tokenizer=tiny_tokenizer()).sublayers == [None] * 4


def test_a_hook_for_all_modules_is_the_reason_that_is_given_at_load():
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, _, output: 2 * output if isinstance(module, nn.Linear) and output.shape[-1] > 300 else None
    )
    try:
        with refused(ll.ModelError, given="LlamaForCausalLM", advice="all modules"):
            ll.load(tiny_model("llama"), tokenizer=tiny_tokenizer())
    finally:
        handle.remove()
