"""A model that is changed after it was loaded gives its own numbers, or is refused with what changed; and what cannot
be loaded is refused for its true reason."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize, prune
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

import layerlens as ll
from layerlens.models.changes import changes
from layerlens.models.tiny import tiny_model, tiny_tokenizer
from layerlens.models.unchanged import still_as_loaded
from tests.models.tiny_gguf import needs_packed_lfm2, tiny_lfm2, write_gguf
from tests.needs_inspect import needs_inspect
from tests.refusals import refused
from tests.thorough import some

TEXT = "hello there"


class LoRA(nn.Module):
    """A linear module with a product of two small matrices beside it, as adapters are written."""

    def __init__(self, base: nn.Linear, size: float) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)
        nn.init.normal_(self.down.weight)
        nn.init.normal_(self.up.weight, std=size)

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.base(states) + self.up(self.down(states))


def own_entropy(hf: Any, tokenizer: Any) -> float:
    """Of the last position, from the model's own logits in float64."""
    with torch.no_grad():
        logits = hf(torch.tensor([tokenizer(TEXT).input_ids]), use_cache=False).logits[0, -1].double()
    log_probs = logits.log_softmax(-1)
    return float(-(log_probs.exp() * log_probs).sum())


def recorded_entropy(model: ll.Model, out: Path) -> float:
    run = ll.trace(model, [TEXT], max_new_tokens=0, out=out, progress=False)
    return float(run.layers("entropy")[-1, -1])


def swap_blocks(hf: Any) -> None:
    layers = hf.model.layers
    layers[1], layers[2] = layers[2], layers[1]


def shorten(hf: Any) -> None:
    hf.config.num_hidden_layers -= 1  # the decoder runs so many of its blocks


def patched_forward(hf: Any) -> None:
    plain = hf.model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = plain(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state.roll(1, dims=-1)
        return output

    hf.model.forward = forward


def rotated(module: Any, given: Any, output: torch.Tensor) -> torch.Tensor:
    return output.roll(1, dims=-1)


REFUSED: dict[str, Callable[[Any], object]] = {
    "an adapter on the head": lambda hf: setattr(hf, "lm_head", LoRA(hf.lm_head, 0.5)),
    "another final norm": lambda hf: setattr(hf.model, "norm", nn.Identity()),
    "a bias on the head": lambda hf: setattr(hf.lm_head, "bias", nn.Parameter(torch.randn(hf.lm_head.out_features))),
    "another head": lambda hf: hf.set_output_embeddings(nn.Linear(hf.config.hidden_size, 320, bias=False)),
    "another weight of the head": lambda hf: setattr(
        hf.lm_head, "weight", nn.Parameter(torch.randn_like(hf.lm_head.weight))
    ),
    "a hook on the head": lambda hf: hf.lm_head.register_forward_hook(rotated),
    "a hook on the final norm of three": lambda hf: hf.model.norm.register_forward_hook(
        lambda module, given, output: output.roll(1, dims=0 if output.ndim == 2 else 1)
    ),
    "a hook on what owns the blocks": lambda hf: hf.model.register_forward_hook(
        lambda module, given, output: output | {"last_hidden_state": output.last_hidden_state * 1.5}
    ),
    "a hook on the model": lambda hf: hf.register_forward_hook(
        lambda module, given, output: type(output)(logits=rotated(module, given, output.logits))
    ),
    "a block left out": lambda hf: hf.model.layers.__delitem__(2),
    "a block appended": lambda hf: hf.model.layers.append(hf.model.layers[0]),
    "blocks in another order": swap_blocks,
    "a block less in the config": shorten,
    "another forward": patched_forward,
    "another norm between attention and MLP": lambda hf: setattr(
        hf.model.layers[1], "post_attention_layernorm", nn.LayerNorm(hf.config.hidden_size)
    ),
    "the weights in another type": lambda hf: hf.to(torch.bfloat16),
    "a hook on all modules": lambda hf: register_module_forward_hook(
        lambda module, given, output: rotated(module, given, output) if module is hf.lm_head else None
    ),
    "a pruned head": lambda hf: prune.random_unstructured(hf.lm_head, "weight", amount=0.5),
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
def test_a_change_of_what_readings_rest_on_is_refused_at_every_door(
    change: Callable[[Any], object], tmp_path: Path
) -> None:
    with changed(change) as model:
        for door in (
            lambda: ll.trace(model, [TEXT], max_new_tokens=0, out=tmp_path / "run", progress=False),
            lambda: ll.generate(model, TEXT, max_new_tokens=2),
            lambda: ll.decoding(model, ll.Last()).__enter__(),
        ):
            with pytest.raises(ll.ModelError):
                door()
    assert list(tmp_path.iterdir()) == []


@needs_inspect
@pytest.mark.parametrize("change", some([pytest.param(one, id=name) for name, one in REFUSED.items()], 5))
def test_a_change_of_what_readings_rest_on_is_refused_by_an_ablation(
    change: Callable[[Any], object], tmp_path: Path
) -> None:
    with changed(change) as model, pytest.raises(ll.ModelError):
        ll.ablate(model, ["sample"], limit=2, out=tmp_path / "answers", max_new_tokens=2)
    assert list(tmp_path.iterdir()) == []


@contextmanager
def changed(change: Callable[[Any], object]) -> Iterator[ll.Model]:
    """A model that was changed after it was loaded."""
    hf = tiny_model("llama", num_hidden_layers=6)
    model = ll.load(hf, tiny_tokenizer())
    left = change(hf)
    hf.eval()
    try:
        yield model
    finally:
        if isinstance(left, RemovableHandle):
            left.remove()


def test_a_change_inside_the_drop_in_is_refused_by_generate() -> None:
    hf, tokenizer = tiny_model("llama"), tiny_tokenizer()
    ids = torch.tensor([tokenizer(TEXT).input_ids])
    with ll.decoding(ll.load(hf, tokenizer), ll.Fixed(offset=1)):
        hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2)
        hf.model.norm = nn.Identity()
        with pytest.raises(ll.ModelError):
            hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2)


def test_new_values_of_the_head_are_read_within_one_drop_in() -> None:
    hf, tokenizer = tiny_model("llama", num_hidden_layers=6), tiny_tokenizer()
    model = ll.load(hf, tokenizer)
    ids = torch.tensor([tokenizer(TEXT).input_ids])
    settings: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12}
    values = torch.randn_like(hf.lm_head.weight)
    with ll.decoding(model, ll.Valley(window=3)):
        hf.generate(ids, **settings)  # long enough for a copy of the head to be made
        hf.lm_head.weight.data.copy_(values)
        second = hf.generate(ids, **settings).tolist()
    with ll.decoding(ll.load(hf, tokenizer), ll.Valley(window=3)):
        assert hf.generate(ids, **settings).tolist() == second


def shifted(module: Any, given: Any, output: Any) -> Any:
    states = output[0] if isinstance(output, tuple) else output
    return (states + 0.7, *output[1:]) if isinstance(output, tuple) else states + 0.7


def train_a_step(hf: Any) -> None:
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter += 0.05 * torch.randn_like(parameter)


KEPT: dict[str, Callable[[Any], object]] = {
    "steering at a block": lambda hf: hf.model.layers[2].register_forward_hook(shifted),
    "steering at the last block": lambda hf: hf.model.layers[-1].register_forward_hook(shifted),
    "steering at an MLP": lambda hf: hf.model.layers[1].mlp.register_forward_hook(shifted),
    "an adapter on attention": lambda hf: setattr(
        hf.model.layers[1].self_attn, "q_proj", LoRA(hf.model.layers[1].self_attn.q_proj, 0.5)
    ),
    "an adapter on an MLP": lambda hf: setattr(
        hf.model.layers[3].mlp, "down_proj", LoRA(hf.model.layers[3].mlp.down_proj, 0.5)
    ),
    "all weights in place": train_a_step,
    "the head's weight in place": lambda hf: nn.init.normal_(hf.lm_head.weight),
    "the final norm's weight in place": lambda hf: nn.init.normal_(hf.model.norm.weight),
    "a hook that only looks at the head": lambda hf: hf.lm_head.register_forward_hook(lambda *seen: None),
    "the name of attention": lambda hf: hf.set_attn_implementation("eager"),
}


@pytest.mark.parametrize("change", KEPT.values(), ids=KEPT)
def test_a_change_that_the_readings_follow_is_measured(change: Callable[[Any], object], tmp_path: Path) -> None:
    torch.manual_seed(3)
    hf, tokenizer = tiny_model("llama", num_hidden_layers=6), tiny_tokenizer()
    model = ll.load(hf, tokenizer)
    change(hf)
    hf.eval()
    assert recorded_entropy(model, tmp_path / "run") == pytest.approx(own_entropy(hf, tokenizer), abs=2e-5)
    ids = torch.tensor([tokenizer(TEXT).input_ids])
    own = hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
    assert ll.generate(model, TEXT, max_new_tokens=4).token_ids == own.tolist()


def test_an_adapter_that_is_still_zero_is_asked_at_every_use(tmp_path: Path) -> None:
    hf, tokenizer = tiny_model("llama"), tiny_tokenizer()
    model = ll.load(hf, tokenizer)
    hook = hf.lm_head.register_forward_hook(lambda module, given, output: output * hook_factor[0])
    hook_factor = [1.0]
    recorded_entropy(model, tmp_path / "unchanged")
    hook_factor[0] = 3.0
    with pytest.raises(ll.ModelError):
        recorded_entropy(model, tmp_path / "changed")
    hook.remove()
    assert recorded_entropy(model, tmp_path / "again") == pytest.approx(own_entropy(hf, tokenizer), abs=2e-5)


@pytest.mark.parametrize("path", ["model.layers.1.mlp", "model.layers.0.self_attn.q_proj", "model.norm", ""])
def test_one_module_in_training_mode_is_refused_by_its_name(path: str) -> None:
    hf = tiny_model("llama")
    model = ll.load(hf, tiny_tokenizer())
    hf.get_submodule(path).train()
    with refused(ll.ModelError, problem=path or "LlamaForCausalLM", advice="eval()"):
        ll.generate(model, TEXT, max_new_tokens=1)


def test_another_scale_of_the_logits_is_refused() -> None:
    hf = tiny_model("granite")
    model = ll.load(hf, tiny_tokenizer())
    hf.config.logits_scaling = hf.config.logits_scaling * 2
    with refused(ll.ModelError, problem="logits_scaling"):
        ll.generate(model, TEXT, max_new_tokens=1)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "falcon_h1", "opt", "qwen3_moe"])
def test_use_changes_nothing_that_is_noted(family: str, tmp_path: Path) -> None:
    model = ll.load(tiny_model(family), tiny_tokenizer())
    ll.trace(model, [TEXT], max_new_tokens=3, out=tmp_path / "run", progress=False)
    ids = torch.tensor([model.tokenizer(TEXT).input_ids])
    with ll.decoding(model, ll.Valley(window=2)):
        model.hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3)
        assert changes(model) == ([], [])  # our own hooks are none of the user's
    assert changes(model) == ([], [])


def test_the_checks_at_each_use_compute_nothing() -> None:
    """No operation on a tensor, and as many calls for every block, however many words there are."""

    class Operations(TorchDispatchMode):
        n = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.n += 1
            return func(*args, **(kwargs or {}))

    def calls(n_layers: int, n_words: int) -> int:
        model = ll.load(tiny_model("llama", num_hidden_layers=n_layers, vocab_size=n_words), tiny_tokenizer())
        still_as_loaded(model)
        made = []
        with Operations() as operations:
            sys.setprofile(lambda _frame, event, _arg: made.append(event) if event == "call" else None)
            try:
                still_as_loaded(model)
            finally:
                sys.setprofile(None)
        assert operations.n == 0
        return len(made)

    few, more, most = (calls(n_layers, 400) for n_layers in (2, 4, 8))
    assert most - more == 2 * (more - few)
    assert more - few < 2 * 200
    assert calls(2, 4000) == few


def test_a_pruned_or_parametrised_head_is_refused_for_what_it_is() -> None:
    class Doubled(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    pruned, doubled = tiny_model("llama", tie_word_embeddings=False), tiny_model("llama", tie_word_embeddings=False)
    prune.random_unstructured(pruned.lm_head, "weight", amount=0.5)
    parametrize.register_parametrization(doubled.lm_head, "weight", Doubled())
    for hf in (pruned, doubled):
        with refused(ll.ModelError, given="LlamaForCausalLM", problem="weight anew"):
            ll.load(hf, tiny_tokenizer())
    prune.remove(pruned.lm_head, "weight")
    assert isinstance(ll.load(pruned, tiny_tokenizer()), ll.Model)


def test_an_adapter_or_a_hook_on_the_head_is_refused_for_what_it_is() -> None:
    adapted, hooked = tiny_model("llama"), tiny_model("llama")
    adapted.lm_head = LoRA(adapted.lm_head, 0.5)
    hooked.lm_head.register_forward_hook(rotated)
    for hf, word in ((adapted, "merge"), (hooked, "hooks")):
        with refused(ll.ModelError, given="LlamaForCausalLM", advice=word):
            ll.load(hf.eval(), tiny_tokenizer())


def test_a_model_without_values_is_refused() -> None:
    with torch.device("meta"):
        hf = tiny_model("llama")
    with pytest.raises(ll.ModelError, match="meta device"):
        ll.load(hf, tiny_tokenizer())


def test_a_folder_of_an_adapter_is_refused_with_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    with refused(ll.ModelError, problem="org/base"):
        ll.load(tmp_path)
    tiny_model("llama").save_pretrained(tmp_path)  # and where the base lies beside it
    tiny_tokenizer().save_pretrained(tmp_path)
    with refused(ll.ModelError, problem="org/base"):
        ll.load(tmp_path)


def test_a_wrapper_is_refused_with_what_is_inside() -> None:
    wrapper = nn.DataParallel(tiny_model("llama"))
    with pytest.raises(ll.OptionError, match=r"LlamaForCausalLM.*model\.module"):
        ll.load(wrapper, tiny_tokenizer())  # type: ignore[arg-type]


def saved(folder: Path, kind: str, **config: Any) -> Path:
    tiny_model(kind, **config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def edit_config(folder: Path, **entries: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))


@pytest.mark.parametrize(
    ("kind", "config", "edited", "named"),
    [
        ("llama", {"attention_bias": True}, {"attention_bias": False}, "k_proj.bias"),
        ("llama", {"mlp_bias": True}, {"mlp_bias": False}, "down_proj.bias"),
        ("llama", {"num_hidden_layers": 4}, {"num_hidden_layers": 3}, "layers.3."),
        ("cohere", {"use_qk_norm": True}, {"use_qk_norm": False}, "k_norm"),
    ],
)
def test_weights_that_the_class_does_not_take_are_named(
    kind: str, config: dict[str, Any], edited: dict[str, Any], named: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path, kind, **config)
    assert isinstance(ll.load(folder), ll.Model)
    edit_config(folder, **edited)
    with refused(ll.ModelError, given=str(folder), problem=named, advice="config.json"):
        ll.load(folder)


def test_weights_that_no_pass_uses_may_be_left_out(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = saved(tmp_path, "llama")
    weights = load_file(folder / "model.safetensors")
    more = {"mtp.layers.0.weight": torch.ones(3), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(weights | more, folder / "model.safetensors", metadata={"format": "pt"})
    assert isinstance(ll.load(folder), ll.Model)


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.0.ffn_gate.bias"])
def test_tensors_that_transformers_passes_over_in_gguf_are_named(name: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "plain.gguf", tiny_lfm2())
    assert isinstance(ll.load(tmp_path / "plain.gguf"), ll.Model)
    write_gguf(tmp_path / "more.gguf", tiny_lfm2(), more=(name,))
    # later versions give the name that it would have in the model
    left_out = "bias" if name.endswith("bias") else name
    with refused(ll.ModelError, given=str(tmp_path / "more.gguf"), problem=left_out):
        ll.load(tmp_path / "more.gguf")


@needs_packed_lfm2
def test_a_packed_head_that_was_written_to_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "packed.gguf", tiny_lfm2())
    model = ll.load(tmp_path / "packed.gguf", keep_quantized=True)
    ll.generate(model, TEXT, max_new_tokens=1)
    assert model.unembed.packed is not None  # its readout holds an unpacked copy
    with torch.no_grad():
        next(iter(model.head.parameters())).zero_()
    with pytest.raises(ll.ModelError):
        ll.generate(model, TEXT, max_new_tokens=1)


def test_what_transformers_notes_on_a_model_is_asked_about_once() -> None:
    """Its generate with a static cache leaves a number there, and a number that was found to be harmless stays so."""
    hf, tokenizer = tiny_model("llama"), tiny_tokenizer()
    model = ll.load(hf, tokenizer)
    ids = torch.tensor([tokenizer(TEXT).input_ids])
    hf.generate(ids, max_new_tokens=3, do_sample=False, cache_implementation="static")
    assert changes(model) != ([], [])
    passes: list[int] = []
    hf.model.layers[0].register_forward_pre_hook(lambda block, given: passes.append(1))
    still_as_loaded(model)
    assert len(passes) > 0
    assert changes(model) == ([], [])
    passes.clear()
    still_as_loaded(model)
    assert passes == []
    with torch.no_grad():
        hf.model.norm.weight.mul_(2)
    still_as_loaded(model)
    assert len(passes) > 0
