"""The Jacobian lens is TransformerLens' own, in its file, and both packages read it alike."""

import sys
from copy import deepcopy

import pytest
import torch

import layerlens as ll
from layerlens.fitting import workplace
from layerlens.fitting.options import JacobianOptions
from layerlens.fitting.texts import split_texts
from layerlens.lens.files import read_lens
from layerlens.lens.opening import open_lens
from tests.conftest import tiny
from tests.fitting.test_linear import texts
from tests.refusals import refused

pytest.importorskip("transformer_lens")
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformer_lens.tools.analysis import JacobianLens

OPTIONS = {"max_length": 40, "skip_first": 2, "most_texts": 3}


def fitted(model, tmp_path, prompts=None, name="lens", **options):
    prompts = texts(10) if prompts is None else prompts
    out = tmp_path / f"{name}.pt"
    return ll.fit_lens(model, prompts, "jacobian", out=out, progress=False, **(OPTIONS | options))


def bridge_of(model):
    hf = deepcopy(model.hf)
    kind, name = type(hf).__name__, model.source
    return build_bridge_from_module(hf, kind, hf_config=hf.config, tokenizer=None, model_name=name).eval()


def split_of(model, n=10):
    with pytest.warns(ll.errors.Notice):
        return split_texts(model, ll.datasets.from_prompts(texts(n)), JacobianOptions(**OPTIONS))


@pytest.mark.filterwarnings("ignore::layerlens.errors.Notice")
@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere"])
def test_it_is_the_derivative_of_the_last_state(family, tmp_path):
    """By plain autograd over our own model: summed over targets, averaged over sources and texts."""
    model = tiny(family)
    found = fitted(model, tmp_path)
    stored = read_lens("jacobian", found.path)
    split = split_of(model)
    layer = 2
    total = torch.zeros(model.d_model, model.d_model, dtype=torch.float64)
    wide = deepcopy(model.hf).double()
    blocks = dict(wide.named_modules())[next(n for n, m in model.hf.named_modules() if m is model.blocks[0])[:-2]]
    for text in split.fitted[:3]:
        kept = {}

        def keep(_block, _args, output, kept=kept):
            kept["source"] = (output[0] if isinstance(output, tuple) else output).detach().requires_grad_()
            return (kept["source"], *output[1:]) if isinstance(output, tuple) else kept["source"]

        def keep_last(_block, _args, output, kept=kept):
            kept["last"] = output[0] if isinstance(output, tuple) else output

        hooks = [blocks[layer - 1].register_forward_hook(keep), blocks[-1].register_forward_hook(keep_last)]
        wide(torch.tensor([text.token_ids]), use_cache=False)
        for hook in hooks:
            hook.remove()
        valid = slice(split.skip, len(text.token_ids) - 1)
        for row, target in zip(total, kept["last"][0, valid].sum(0), strict=True):
            row += torch.autograd.grad(target, kept["source"], retain_graph=True)[0][0, valid].mean(0)
    torch.testing.assert_close(stored.weights[layer].double(), total / 3, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore::layerlens.errors.Notice")
def test_text_by_text_it_is_the_fit_of_all_texts(tmp_path):
    model = tiny("llama")
    found = fitted(model, tmp_path)
    bridge = bridge_of(model)
    bridge.to_tokens = lambda token_ids: torch.tensor([token_ids])
    split = split_of(model)
    whole = JacobianLens.fit(
        bridge,
        [text.token_ids for text in split.fitted[:3]],
        corpus="x",
        max_seq_len=40,
        skip_first_positions=split.skip,
        show_progress=False,
    )
    read = JacobianLens.load(str(found.path))
    assert read.n_prompts == whole.n_prompts == 3
    assert read.source_layers == whole.source_layers == [0, 1, 2]
    for layer in read.source_layers:
        assert torch.equal(read.jacobians[layer], whole.jacobians[layer])
    ours = {name: value for name, value in read.metadata.items() if name not in ("fit", "made_for", "corpus")}
    theirs = {name: value for name, value in whole.metadata.items() if name not in ("corpus",)}
    assert ours == theirs


@pytest.mark.filterwarnings("ignore::layerlens.errors.Notice")
@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere"])
def test_both_packages_read_the_file_alike(family, tmp_path):
    model = tiny(family)
    found = fitted(model, tmp_path)
    ids = model.tokenizer("the ferry returns each day").input_ids
    same_readout(found.path, model, bridge_of(model), ids, range(model.n_layers - 1))


def same_readout(path, model, bridge, ids, blocks):
    theirs = JacobianLens.load(str(path)).readout(bridge, torch.tensor([ids]), return_full_logits=True)
    lens = open_lens(f"jacobian:{path}", model)
    states = bridge.run_with_cache(torch.tensor([ids]))[1]
    for block in blocks:
        stream = states[f"blocks.{block}.hook_out"][0]
        with torch.no_grad():
            ours = model.unembed.logits(lens(stream, block + 1)).log_softmax(1)
        torch.testing.assert_close(ours, theirs.lens_logits[block].log_softmax(1), rtol=0, atol=1e-4)


def test_both_packages_read_a_real_model_alike(smollm2, tmp_path):
    """Through made-up matrices: to fit them takes minutes."""
    draws = torch.Generator().manual_seed(0)
    width, blocks = smollm2.d_model, range(0, smollm2.n_layers - 1, 7)
    made_up = {one: torch.eye(width) + torch.randn(width, width, generator=draws) / width for one in blocks}
    JacobianLens(made_up, n_prompts=1, d_model=width).save(str(tmp_path / "lens.pt"), dtype=torch.float32)
    ids = smollm2.tokenizer("The capital of France is").input_ids
    same_readout(tmp_path / "lens.pt", smollm2, bridge_of(smollm2), ids, blocks)


@pytest.mark.filterwarnings("ignore::layerlens.errors.Notice")
def test_what_it_gains_is_in_the_file_with_the_model_it_was_made_for(tmp_path):
    model = tiny("llama")
    found = fitted(model, tmp_path)
    stored = read_lens("jacobian", found.path)
    assert stored.made_for["identity"]
    assert stored.fit["fit"]["gain"]["kl_lens"] == found.gain["kl_lens"].tolist()
    assert found.gain["layer"].tolist() == [1, 2, 3]
    assert (found.said["n_texts"], found.said["skipped"]) == (3, 2)
    again = fitted(model, tmp_path, resume=True)
    assert again.gain.equals(found.gain)
    with refused(ll.OptionError, "lens", found.lens):
        open_lens(found.lens, tiny("qwen3"))


@pytest.mark.filterwarnings("ignore::layerlens.errors.Notice")
def test_a_fit_that_stopped_goes_on_with_the_next_text(tmp_path, monkeypatch):
    model = tiny("llama")
    whole = fitted(model, tmp_path, name="whole")
    monkeypatch.setattr(workplace, "_SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(workplace, "_SHARE_OF_TIME", 0)
    fit, calls = JacobianLens.fit, []

    def stopping(*given, **options):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fit(*given, **options)

    monkeypatch.setattr(JacobianLens, "fit", stopping)
    with pytest.raises(KeyboardInterrupt):
        fitted(model, tmp_path)
    again = fitted(model, tmp_path, resume=True)
    assert len(calls) == 4
    one, other = (JacobianLens.load(str(path)).jacobians for path in (whole.path, again.path))
    assert all(torch.equal(one[layer], other[layer]) for layer in one)


@pytest.mark.filterwarnings("ignore::layerlens.errors.Notice")
def test_the_model_itself_stays_as_it_was(tmp_path):
    model = tiny("llama")
    names = [name for name, _ in model.hf.named_modules()]
    fitted(model, tmp_path)
    assert [name for name, _ in model.hf.named_modules()] == names
    assert all(parameter.grad is None for parameter in model.hf.parameters())


@pytest.mark.filterwarnings("ignore::layerlens.errors.Notice")
def test_what_has_no_such_lens_is_refused(tmp_path, monkeypatch):
    with refused(ll.ModelError, "kind", "jacobian", advice="linear"):
        fitted(tiny("opt"), tmp_path)
    bridged = ll.load(deepcopy(tiny("llama").hf), tokenizer=tiny("llama").tokenizer, backend="transformer-lens")
    with refused(ll.OptionError, "backend", "transformer-lens"):
        fitted(bridged, tmp_path, name="other")
    for option in ("dim_batch", "most_texts", "penalty"):
        with refused(ll.OptionError, option, 0):
            fitted(tiny("llama"), tmp_path, **{option: 0})
    with refused(ll.OptionError, "out", advice="lens.pt"):
        ll.fit_lens(tiny("llama"), texts(10), "jacobian", out=tmp_path / "lens.safetensors")
    with refused(ll.PromptError, "prompts", 2, advice="3"):
        fitted(tiny("llama"), tmp_path, texts(2), name="few")
    monkeypatch.setitem(sys.modules, "transformer_lens.tools.analysis", None)
    with refused(ll.OptionError, "kind", "jacobian", advice="pip install"):
        fitted(tiny("llama"), tmp_path, name="lacking")
