"""Lenses of a real model: every number of a trace against float64, and the readout of TransformerLens."""

from copy import deepcopy

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import torch

import layerlens as ll
from layerlens.lens import tiled
from layerlens.lens.files import Stored, write_lens
from layerlens.lens.opening import made_for, open_lens
from tests.fitting.test_linear import plain_states
from tests.thorough import thorough

TEXT = "The ferry leaves at noon. It carries twelve cars, and each crossing takes"


def drawn(model, path, kind):
    """Matrices near the identity, with vectors in the linear lens: as far from it as fitted ones are."""
    draws = torch.Generator().manual_seed(1)
    width, layers = model.d_model, range(int(kind == "jacobian"), model.n_layers)
    weights = {layer: torch.eye(width) + 0.02 * torch.randn(width, width, generator=draws) for layer in layers}
    biases = {layer: torch.randn(width, generator=draws) for layer in layers} if kind == "linear" else {}
    if kind == "linear":
        write_lens(path, Stored(kind, weights, biases, width, model.n_layers, made_for(model)))
    else:
        torch.save({"J": {layer - 1: one for layer, one in weights.items()}, "n_prompts": 1, "d_model": width}, path)
    return weights, biases


def log_probs_of(model, states):
    """Of float64 states [rows, d]: RMS norm and unembedding written out in numpy."""
    norm = model.hf.model.norm
    scaled = states / np.sqrt((states**2).mean(-1, keepdims=True) + norm.variance_epsilon)
    logits = (scaled * norm.weight.detach().double().numpy()) @ model.unembed.weight.detach().double().numpy().T
    return scipy.special.log_softmax(logits, axis=-1)


@pytest.mark.parametrize(("kind", "name"), [("linear", "lens.safetensors"), ("jacobian", "lens.pt")])
def test_a_trace_through_a_lens_is_a_plain_float64_reading(smollm2, tmp_path, kind, name):
    model = smollm2
    weights, biases = drawn(model, tmp_path / name, kind)
    run = ll.trace(
        model,
        [TEXT],
        lens=f"{kind}:{tmp_path / name}",
        max_new_tokens=0,
        chat_template=False,
        out=tmp_path / "run",
        progress=False,
        targets=True,
        js=True,
        top=3,
    )
    ids = model.tokenizer(TEXT).input_ids
    states = plain_states(model, ids)
    last = log_probs_of(model, states[-1])
    for layer in (1, 2, 10, 20, 29, 30):
        mapped = states[layer]
        if layer < model.n_layers:
            mapped = mapped @ weights[layer].double().numpy().T
            mapped = mapped + (biases[layer].double().numpy() if biases else 0.0)
        log_probs = log_probs_of(model, mapped)
        probs = np.exp(log_probs)
        np.testing.assert_allclose(run.layers("entropy")[:, layer - 1], -(probs * log_probs).sum(1), atol=1e-3)
        own = np.take_along_axis(log_probs[:-1], np.array(ids[1:])[:, np.newaxis], 1)
        np.testing.assert_allclose(run.layers("next_log_prob")[:-1, layer - 1], own[:, 0], atol=1e-3)
        least, most = ((log_probs[:-1] > own + by).sum(1) for by in (2e-4, -2e-4))
        ranks = run.layers("next_rank")[:-1, layer - 1]
        assert ((least <= ranks) & (ranks <= most)).all()
        np.testing.assert_allclose(run.layers("top_k_probs")[:, layer - 1], -np.sort(-probs, 1)[:, :3], atol=1e-3)
        js = scipy.spatial.distance.jensenshannon(probs, np.exp(last), axis=1) ** 2
        np.testing.assert_allclose(run.layers("js_from_last")[:, layer - 1], js, atol=1e-4)


@thorough
def test_a_jacobian_file_reads_as_transformer_lens_reads_it(smollm2, tmp_path):
    """Log-probabilities of all words within 1e-4, at early, middle and late layers."""
    sources = pytest.importorskip("transformer_lens.model_bridge.sources")
    from transformer_lens.tools.analysis import JacobianLens

    model, path = smollm2, tmp_path / "lens.pt"
    drawn(model, path, "jacobian")
    hf = deepcopy(model.hf)
    bridge = sources.build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config, tokenizer=None).eval()
    ids = torch.tensor([model.tokenizer(TEXT).input_ids])
    theirs = JacobianLens.load(str(path)).readout(bridge, ids, layers=[0, 9, 19, 28], return_full_logits=True)
    transport = open_lens(f"jacobian:{path}", model)
    states = torch.from_numpy(plain_states(model, ids[0].tolist())).float()
    for block in (0, 9, 19, 28):
        expected = theirs.lens_logits[block].double().log_softmax(-1)
        chosen = torch.arange(model.n_vocab)[None].expand(len(expected), -1)[:, ::7]
        reading = tiled.read(transport(states[block + 1], block + 1), model.unembed, chosen)
        np.testing.assert_allclose(reading.log_probs, expected[:, ::7], atol=1e-4)
