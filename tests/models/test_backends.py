"""TransformerLens and nnsight as backends: the same numbers as transformers, and what each of them cannot do."""

import copy
import importlib.abc
import sys

import numpy as np
import pytest
import torch

import layerlens as ll
from layerlens.models import tiny_model, tiny_tokenizer
from tests.conftest import tiny
from tests.invariants.laws import FLOATS, hook_count, runs_agree
from tests.refusals import refused
from tests.thorough import combined, some

pytest.importorskip("nnsight")
pytest.importorskip("transformer_lens")

TEXTS = ["Hello there, you", "a", "What is this? And that"]
# a dense one, one with soft-caps and windows, one with recurrences and experts
FAMILIES = ["llama", "gemma2", "qwen3_5_moe_text"]
OURS = ["transformer-lens", "nnsight", "nnsight-simulated"]
GIVEN = {"max_new_tokens": 0, "batch_size": 3}
REPLAY = {"max_new_tokens": 5, "mode": "replay", "batch_size": 1}


def backed(family, backend, **changes):
    return ll.load(tiny_model(family, **changes), tokenizer=tiny_tokenizer(), backend=backend)


def language_model(folder):
    """nnsight's wrapper of a checkpoint, without weights."""
    from nnsight.modeling.transformers import TransformersModel

    return TransformersModel(folder, task="text-generation", tokenizer=tiny_tokenizer())


def boot(family, **changes):
    """A bridge of TransformerLens around a tiny model."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    hf = tiny_model(family, **changes)
    return build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config, tokenizer=None, model_name=family)


@pytest.mark.parametrize(("family", "backend", "options"), combined(FAMILIES, OURS, [GIVEN, REPLAY], n=9))
def test_every_backend_records_the_same(family, backend, options, run_of):
    model = backed(family, backend)
    one, other = (run_of(m, TEXTS, **options) for m in (tiny(family), model))
    runs_agree(one, other, 1e-5)
    np.testing.assert_array_equal(one.layers("top_token_id"), other.layers("top_token_id"))
    assert one.prompts["output"].tolist() == other.prompts["output"].tolist()
    assert other.manifest["model"]["backend"] == backend
    assert hook_count(tiny(family).hf) == 0


@pytest.mark.parametrize("backend", some(OURS, 2))
def test_a_real_model_gives_the_same_numbers_through_every_backend(backend, smollm2, run_of):
    hf = copy.deepcopy(smollm2.hf)  # TransformerLens puts its components into the model
    model = ll.load(hf, tokenizer=smollm2.tokenizer, backend=backend)
    texts = ["A ferry carries 38 cars and makes 7 crossings a day.", "The capital of France is"]
    options = {"max_new_tokens": 0, "batch_size": 2, "chat_template": False}
    runs_agree(run_of(smollm2, texts, **options), run_of(model, texts, **options), 1e-4)


@pytest.mark.parametrize("family", ["llama", "mixtral", "gemma3_text", "gpt2"])
def test_a_model_whose_weights_are_not_here_is_traced_where_they_are(family, tiny_folder, run_of):
    folder = tiny_folder(family)
    lm = language_model(folder)
    assert all(weight.is_meta for weight in lm._module.parameters())
    remote, here = ll.load(lm, backend="nnsight-simulated"), ll.load(folder)
    assert (remote.layer_kinds, remote.tied, remote.n_vocab) == (here.layer_kinds, here.tied, here.n_vocab)
    assert remote.record()["dtype"] == "float32"
    for options in (GIVEN, REPLAY):
        one, other = (run_of(model, TEXTS, **options) for model in (here, remote))
        runs_agree(one, other, 1e-5)
        assert one.prompts[["output", "finish_reason"]].equals(other.prompts[["output", "finish_reason"]])


class OnlyAServer(importlib.abc.MetaPathFinder):
    """Refuses to import what an nnsight server does not have."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("layerlens", "jaxtyping", "pandas", "matplotlib", "tests"):
            raise ModuleNotFoundError(f"a server has no {name}")


def test_what_travels_to_a_server_needs_nothing_of_ours_there(tiny_folder, run_of, monkeypatch):
    from nnsight.intervention.backends.local import LocalSimulationBackend

    hide, restore = LocalSimulationBackend._hide_local_modules, LocalSimulationBackend._restore
    finder, hidden_roots = OnlyAServer(), []

    def hide_more(self):
        sys.meta_path.insert(0, finder)
        hidden = hide(self)
        hidden_roots.extend({name.split(".")[0] for name in hidden["modules"]})
        return hidden

    def restore_all(self, hidden):
        sys.meta_path.remove(finder)
        restore(self, hidden)

    monkeypatch.setattr(LocalSimulationBackend, "_hide_local_modules", hide_more)
    monkeypatch.setattr(LocalSimulationBackend, "_restore", restore_all)
    folder = tiny_folder("llama")
    remote = ll.load(language_model(folder), backend="nnsight-simulated")
    runs_agree(run_of(ll.load(folder), TEXTS, **GIVEN), run_of(remote, TEXTS, **GIVEN), 1e-5)
    assert {"layerlens", "jaxtyping", "pandas"} <= set(hidden_roots)


def test_only_scalars_come_back(tiny_folder, run_of, monkeypatch):
    """Not a state, and not a row of logits: what is saved has one number for each measure, row and layer."""
    import nnsight

    saved = []
    save = nnsight.save
    monkeypatch.setattr(nnsight, "save", lambda value: (saved.append(value), save(value))[1])
    model = ll.load(language_model(tiny_folder("llama")), backend="nnsight-simulated")
    saved.clear()
    run = run_of(model, TEXTS, **GIVEN)
    ((floats, tops),) = saved
    assert floats.shape == (len(FLOATS), model.n_layers, len(run.positions))
    assert tops.shape == floats.shape[1:]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("scale", "readout check"),
        ("stream", "block 2"),
        ("causal", "not causal"),
        ("nan", "infinite logits"),
        ("infinite", "infinite logits"),
        ("zero", "logit of 0"),
    ],
)
def test_the_checks_are_made_where_the_weights_are(change, words):
    hf = tiny_model("llama")
    if change == "scale":
        forward = hf.lm_head.forward
        hf.lm_head.forward = lambda states: 2 * forward(states)
    elif change == "stream":
        hf.model.layers[2].register_forward_pre_hook(lambda _, args: (args[0] * 1.5, *args[1:]))
    elif change == "nan":
        hf.model.layers[1].mlp.down_proj.weight.data.fill_(torch.nan)
    elif change == "infinite":
        last = lambda out: torch.tensor([out.shape[-2] - 1])  # noqa: E731
        hf.lm_head.register_forward_hook(lambda _, args, out: out.index_fill(-2, last(out), torch.inf))
    elif change == "zero":
        hf.lm_head.weight.data.zero_()
    else:
        hf.model.layers[0].mlp.register_forward_hook(lambda _, args, out: out + out.mean(1, keepdim=True))
    with refused(ll.ModelError, "dtype" if "infinite" in words else None, problem=words):
        ll.load(hf, tokenizer=tiny_tokenizer(), backend="nnsight-simulated")


def test_a_bridge_is_traced_with_the_hooks_that_it_carries(run_of):
    bridge = boot("llama")
    model = ll.load(bridge, tokenizer=tiny_tokenizer())
    assert model.backend.name == "transformer-lens"
    plain = run_of(model, TEXTS, **GIVEN)
    runs_agree(run_of(tiny("llama"), TEXTS, **GIVEN), plain, 1e-5)

    def silent(value, hook):
        return torch.zeros_like(value)

    with bridge.hooks(fwd_hooks=[("blocks.2.hook_attn_out", silent)]):
        changed = run_of(model, TEXTS, **GIVEN)
    assert (changed.layers("attn_ratio")[:, 2] == 0).all()
    assert (plain.layers("attn_ratio")[:, 2] > 0).all()
    np.testing.assert_array_equal(plain.layers("entropy")[:, :2], changed.layers("entropy")[:, :2])


def test_layers_have_the_names_that_the_documentation_gives_them():
    """`blocks.{i}.hook_resid_post` in TransformerLens and `model.model.layers[i].output` in nnsight: layer i + 1."""
    import nnsight

    from layerlens.models.hooks import watch_blocks

    ids = torch.tensor([tiny_tokenizer()(TEXTS[0]).input_ids])
    model, states = tiny("llama"), []
    with torch.no_grad(), watch_blocks(model.blocks, model.sublayers, lambda *seen: states.append(seen[1:])):
        model.hf(input_ids=ids)
    _, cache = boot("llama").run_with_cache(ids)
    lm = ll.load(tiny_model("llama"), tokenizer=tiny_tokenizer(), backend="nnsight").backend.language_model
    for index, (before, middle, after) in enumerate(states):
        for name, expected in (("pre", before), ("mid", middle), ("post", after)):
            torch.testing.assert_close(cache[f"blocks.{index}.hook_resid_{name}"], expected, atol=1e-5, rtol=1e-5)
        with torch.no_grad(), lm.trace({"input_ids": ids}):
            block = lm.model.layers[index]
            given = nnsight.save(block.input)
            between = nnsight.save(block.post_attention_layernorm.input)
            returned = nnsight.save(block.output)
        for found, expected in ((given, before), (between, middle), (returned, after)):
            torch.testing.assert_close(found, expected)


def test_a_bridge_decodes_from_the_valley_like_the_model():
    model = ll.load(boot("gemma2"), tokenizer=tiny_tokenizer())
    for text in TEXTS:
        one, other = (
            ll.generate(m, text, strategy=ll.Valley(window=3), max_new_tokens=8) for m in (tiny("gemma2"), model)
        )
        assert one.token_ids == other.token_ids
        assert one.steps["selected_layer"].tolist() == other.steps["selected_layer"].tolist()


def test_a_bridge_with_folded_weights_is_refused():
    bridge = boot("llama")
    bridge.enable_compatibility_mode(disable_warnings=True)
    with refused(ll.ModelError, given="llama", advice="no_processing=True"):
        ll.load(bridge, tokenizer=tiny_tokenizer())
    bridge = boot("llama")
    bridge.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    assert ll.load(bridge, tokenizer=tiny_tokenizer()).n_layers == 4


def test_edits_of_nnsight_show_in_a_trace_and_stop_a_generation(run_of):
    model = backed("llama", "nnsight")
    lm = model.backend.language_model
    plain = run_of(model, TEXTS, **GIVEN)
    with lm.edit(inplace=True):
        lm.model.layers[1].output = lm.model.layers[1].output * 2
    changed = run_of(model, TEXTS, **GIVEN)
    np.testing.assert_array_equal(plain.layers("entropy")[:, 0], changed.layers("entropy")[:, 0])
    assert (plain.layers("norm_ratio")[:, 1] != changed.layers("norm_ratio")[:, 1]).all()
    with refused(ll.OptionError, "model", "LlamaForCausalLM", advice="clear_edits"):
        run_of(model, TEXTS, **REPLAY)
    with refused(ll.OptionError, "model", "LlamaForCausalLM", advice="clear_edits"):
        ll.generate(model, TEXTS[0])


@pytest.mark.parametrize(
    ("options", "option", "given"),
    [
        ({"mode": "generate"}, "mode", "generate"),
        ({"kl": True, "max_new_tokens": 0}, "kl", True),
        ({"strategy": ll.Valley()}, "backend", "nnsight-simulated"),
        ({"temperature": 0.5}, "backend", "nnsight-simulated"),
        ({"repetition_penalty": 1.5}, "backend", "nnsight-simulated"),
        ({"stop_strings": ["."]}, "backend", "nnsight-simulated"),
    ],
)
def test_what_a_backend_cannot_do_is_refused(options, option, given, run_of):
    with refused(ll.OptionError, option, given):
        run_of(backed("llama", "nnsight-simulated"), TEXTS, **options)


def test_decoding_here_needs_the_weights_here():
    model = backed("llama", "nnsight-simulated")
    with refused(ll.OptionError, "backend", "nnsight-simulated"):
        ll.generate(model, TEXTS[0])
    with refused(ll.OptionError, "backend", "nnsight-simulated"), ll.decoding(model, ll.Valley()):
        pass


def test_a_remote_run_needs_a_key(tiny_folder, monkeypatch):
    import nnsight

    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", None)
    with refused(ll.OptionError, "backend", "nnsight-remote", advice="NDIF_API_KEY"):
        ll.load(language_model(tiny_folder("llama")), backend="nnsight-remote")


def test_what_a_server_does_not_have(tiny_folder, monkeypatch):
    import nnsight

    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", "key")
    with refused(ll.OptionError, "backend", "nnsight-remote"):
        ll.load(tiny_folder("llama"), backend="nnsight-remote")
    with refused(ll.ModelError, given="nobody/nothing"):
        ll.load("nobody/nothing", backend="nnsight-remote")


def test_a_server_that_is_not_there_is_said_in_a_sentence(tiny_folder, monkeypatch):
    import nnsight

    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", "key")
    monkeypatch.setattr(nnsight.CONFIG.API, "HOST", "http://127.0.0.1:9")
    with refused(ll.ModelError, problem="nnsight"):
        ll.load(language_model(tiny_folder("llama")), backend="nnsight-remote")


@pytest.mark.parametrize("package", ["nnsight", "transformer_lens"])
def test_a_backend_that_is_not_installed(package, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with refused(ll.OptionError, "backend", advice=f"'{package.replace('_', '-')}"):
        backed("llama", package.replace("_", "-"))


@pytest.mark.parametrize(
    ("make", "backend", "advice"),
    [
        (lambda: tiny_model("llama"), "tensorflow", "transformers, transformer-lens"),
        (lambda: boot("llama"), "nnsight", "leave"),
        (lambda: tiny_model("llama"), "nnsight-remote", "hub id"),
        (lambda: backed("llama", "nnsight").backend.language_model, "transformers", "itself"),
    ],
)
def test_backends_that_do_not_fit_the_model(make, backend, advice):
    with refused(ll.OptionError, "backend", backend, advice=advice):
        ll.load(make(), tokenizer=tiny_tokenizer(), backend=backend)


def test_an_architecture_that_transformer_lens_lacks():
    with refused(ll.ModelError, "backend", "DogeForCausalLM"):
        backed("doge", "transformer-lens")
