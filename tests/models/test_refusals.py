"""Models that cannot be read as they are: the true reason, and what to do, which then works."""

import json
import shutil
import warnings

import pytest
import torch
from torch import nn

import layerlens as ll
from layerlens.models.safetensors_header import entries
from layerlens.models.tiny import tiny_model, tiny_tokenizer
from tests.refusals import refused


def refusal(hf, kind=ll.ModelError):
    with pytest.raises(kind) as caught:
        ll.load(hf, tiny_tokenizer())
    return str(caught.value)


def quantised(hf, what):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated
        return torch.ao.quantization.quantize_dynamic(hf, what, dtype=torch.qint8)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_head_that_torch_quantised(family):
    with refused(ll.ModelError, given="torch.ao.nn.quantized.dynamic.modules.linear.Linear", advice="quantisation"):
        ll.load(quantised(tiny_model(family), {nn.Linear}), tiny_tokenizer())
    hf = tiny_model(family)
    inner = {path for path, module in hf.named_modules() if isinstance(module, nn.Linear) and "head" not in path}
    assert ll.load(quantised(hf, inner) if inner else hf, tiny_tokenizer()).n_layers == 4


class Bare(nn.Module):
    def forward(self, states):
        return states.repeat(1, 1, 5)


@pytest.mark.parametrize("head", [Bare(), nn.Identity()])
def test_a_head_without_a_weight(head):
    hf = tiny_model("llama")
    hf.lm_head = head
    with refused(ll.ModelError, problem=type(head).__name__, advice="torch.nn.Linear"):
        ll.load(hf, tiny_tokenizer())


def test_no_head_at_all():
    with refused(ll.ModelError, given="GPT2Model", problem="no unembedding"):
        ll.load(tiny_model("gpt2").transformer, tiny_tokenizer())


WRAPPERS = {
    "model._orig_mod": lambda hf: torch.compile(hf, backend="eager"),
    "model.module": nn.DataParallel,
    "model.module._orig_mod": lambda hf: nn.DataParallel(torch.compile(hf, backend="eager")),
    "model._orig_mod.module": lambda hf: torch.compile(nn.DataParallel(hf), backend="eager"),
}


@pytest.mark.parametrize("path", WRAPPERS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_wrappers_say_what_is_inside_and_where(path, family):
    inner = tiny_model(family)
    wrapped = WRAPPERS[path](inner)
    said = refusal(wrapped, ll.OptionError)
    assert f"({path})" in said
    assert type(inner).__name__ in said
    assert ("torch.compile" in said) == ("_orig_mod" in path)
    assert eval(path, {"model": wrapped}) is inner
    assert ll.load(inner, tiny_tokenizer()).n_layers == 4


@pytest.mark.parametrize("given", [nn.Linear(2, 2), torch.compile(nn.Linear(2, 2), backend="eager"), 3])
def test_what_holds_no_model(given):
    with refused(ll.OptionError, "model", type(given).__name__, problem="not a model"):
        ll.load(given, tiny_tokenizer())


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_head_of_zeros(family):
    hf = tiny_model(family)
    with torch.no_grad():
        hf.get_output_embeddings().weight.zero_()
    said = refusal(hf)
    assert "unembedding" in said
    assert "zeros" in said
    assert "report" not in said


def test_a_norm_of_zeros_before_the_head():
    hf = tiny_model("llama")
    with torch.no_grad():
        hf.model.norm.weight.zero_()
    with refused(ll.ModelError, problem="zeros", advice="trained weights"):
        ll.load(hf, tiny_tokenizer())


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neox"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_config_that_counts_fewer_layers_than_run(family, when):
    hf, ids = tiny_model(family), torch.tensor([[5, 6, 7]])
    how = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    right = tiny_model(family).generate(ids, **how)
    if when == "before":
        hf.config.num_hidden_layers = 2
    model = ll.load(hf, tiny_tokenizer())
    hf.config.num_hidden_layers = 2
    with refused(ll.ModelError, given=2), ll.decoding(model, ll.Last()):
        hf.generate(ids, **how)
    with ll.decoding(model, ll.Last()):
        assert hf.generate(ids, use_cache=False, **how).tolist() == right.tolist()
    hf.config.num_hidden_layers = 4
    with ll.decoding(model, ll.Last()) as log:
        assert hf.generate(ids, **how).tolist() == right.tolist()
    assert log.steps["next_token_id"].tolist() == right[0, 3:].tolist()


def test_another_index_error_stays_what_it_is():
    model, own = ll.load(tiny_model("gpt2"), tiny_tokenizer()), IndexError()

    def broken(*_):
        raise own

    with pytest.raises(IndexError) as caught, ll.decoding(model, ll.Last()):
        model.hf.generate(torch.tensor([[5]]), max_new_tokens=1, pad_token_id=0, logits_processor=[broken])
    assert caught.value is own


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_values_that_became_nan_after_loading_do_not_still_hold(family):
    model = ll.load(tiny_model(family), tiny_tokenizer())
    norm = model.unembed.tail[-1]
    with torch.no_grad():
        norm.weight.fill_(torch.nan)
    with refused(ll.ModelError, problem="other values"):
        ll.generate(model, "hi", max_new_tokens=1)


@pytest.mark.parametrize("outside", ["../other/model.safetensors", "/etc/hostname", "parts/../../x.safetensors"])
def test_an_index_that_names_files_elsewhere(outside, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "model")
    shutil.copytree(tiny_folder("llama"), tmp_path / "other")
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    names = entries(folder / "part.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "part.safetensors")}))
    assert ll.load(str(folder)).n_layers == ll.load(tiny_folder("llama")).n_layers
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, outside)}))
    with refused(ll.ModelError, given=str(folder), problem=repr(outside)):
        ll.load(str(folder))
