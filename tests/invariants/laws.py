"""The laws of the design as checks that raise AssertionError; `test_seeded_mistakes.py` shows that each can fail."""

import math

import numpy as np
import torch

import layerlens as ll
from layerlens import lens
from layerlens.models import tiny_model
from layerlens.models.hooks import watch_blocks
from tests import reference

FLOATS = ("norm_ratio", "io_cosine", "attn_ratio", "mlp_ratio", "entropy")
TEXTS = ["Hello there, you", "a", "What is this? And that"]
# float32, tiny models; the linear-attention families compute a full pass in chunks and single steps one by one
TOLERANCE = {"qwen3_5_text": 2e-3, "qwen3_5_moe_text": 2e-3}
DEFAULT_TOLERANCE = 5e-5

IDS = torch.tensor([[17, 200, 45, 3, 99, 301, 120, 8], [250, 31, 31, 77, 4, 160, 5, 290]])


def readout_is_the_models_logits(model) -> None:
    """Law 1: the readout of the last block's output is the model's own logits, soft-cap, scale and bias included."""
    last = []
    keep_last = lambda index, h_in, part, h_out: last.append(h_out) if index == model.n_layers - 1 else None  # noqa: E731
    with torch.no_grad(), watch_blocks(model.blocks, model.sublayers, keep_last):
        logits = model.hf(input_ids=IDS, use_cache=False).logits.flatten(0, 1).double()
    reading = lens.read(last[0].flatten(0, 1), model.unembed, logits.argmax(1, keepdim=True), tile=(5, 100))
    expected = torch.special.entr(torch.softmax(logits, 1)).sum(1)
    np.testing.assert_allclose(reading.entropy, expected, atol=1e-4)
    np.testing.assert_array_equal(reading.top_token_id, logits.argmax(1))
    np.testing.assert_allclose(reading.log_probs[:, 0], torch.log_softmax(logits, 1).max(1).values, atol=1e-4)


def parts_add_up(model) -> None:
    """Law 2: h(l-1) + attention part + MLP part = h(l), the parts taken from the sub-layers' own outputs."""
    blocks, _ = reference.structure(model.hf)
    seen = reference.watch(model.hf, blocks, IDS)
    middles = {}
    keep = lambda index, h_in, part, h_out: middles.__setitem__(index, part)  # noqa: E731
    with torch.no_grad(), watch_blocks(model.blocks, model.sublayers, keep):
        model.hf(input_ids=IDS, use_cache=False)
    for index, block in enumerate(blocks):
        attention, mlp = reference.parts(model.family, model.hf.config, block, seen, index)
        scale = seen.h_out[index].abs().max()
        assert (seen.h_in[index] + attention + mlp - seen.h_out[index]).abs().max() < 1e-5 * scale
        part = middles[index].double()
        ours = part if model.sublayers[index].parallel else part - seen.h_in[index]
        assert (ours - attention).abs().max() < 1e-5 * scale


def looking_changes_nothing(model, run_of) -> None:
    """Law 3: logits are bit-equal with tracing on, the emitted tokens are transformers' own, and no hook remains."""
    with torch.no_grad():
        before = model.hf(input_ids=IDS).logits
        with watch_blocks(model.blocks, model.sublayers, lambda *_: None):
            during = model.hf(input_ids=IDS).logits
    assert torch.equal(before, during)
    run = run_of(model, [TEXTS[0]], max_new_tokens=8)
    ids = torch.tensor([model.tokenizer(TEXTS[0]).input_ids])
    emitted = model.hf.generate(input_ids=ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert run.positions["next_token_id"].tolist() == emitted.tolist()
    assert run.layers("top_token_id")[:, -1].tolist() == emitted.tolist()
    assert hook_count(model.hf) == 0
    with torch.no_grad():
        assert torch.equal(before, model.hf(input_ids=IDS).logits)


def batching_changes_nothing(model, run_of) -> None:
    """Law 4: one by one = batched, with left padding (generating) and right padding (replaying)."""
    for mode in ("generate", "replay"):
        alone, batched = (run_of(model, TEXTS, max_new_tokens=6, mode=mode, batch_size=size) for size in (1, 3))
        runs_agree(alone, batched, TOLERANCE.get(model.family, DEFAULT_TOLERANCE))
    texts = {"max_new_tokens": 0}
    runs_agree(
        run_of(model, TEXTS, **texts),
        run_of(model, TEXTS, batch_size=3, **texts),
        TOLERANCE.get(model.family, DEFAULT_TOLERANCE),
    )


def modes_agree(model, run_of, kept=("generated", "all")) -> None:
    """Law 5: what was recorded while generating is what one full pass over prompt and output records."""
    for positions in kept:
        generated, replayed = (
            run_of(model, TEXTS, max_new_tokens=6, mode=mode, positions=positions) for mode in ("generate", "replay")
        )
        runs_agree(generated, replayed, TOLERANCE.get(model.family, DEFAULT_TOLERANCE))


def tiled_is_whole(model) -> None:
    """Law 5: any tiling reads the same."""
    states = torch.randn(23, model.d_model, generator=torch.Generator().manual_seed(0))
    whole = lens.read(states, model.unembed, tile=(23, model.n_vocab))
    for tile in ((1, 64), (5, 100), (23, 1), (40, 306)):
        tiled = lens.read(states, model.unembed, tile=tile)
        np.testing.assert_allclose(tiled.entropy, whole.entropy, atol=2e-5)
        np.testing.assert_array_equal(tiled.top_token_id, whole.top_token_id)


def numbers_agree_with_the_reference(model, run_of) -> None:
    """Every recorded number of given texts is what hooks and whole float64 logits give; bounds hold (law 9)."""
    run = run_of(model, TEXTS, max_new_tokens=0, batch_size=2)
    blocks, tail = reference.structure(model.hf)
    readout = reference.own_readout(model.hf, tail)
    for text, (_, rows) in zip(TEXTS, run.positions.groupby("prompt_id", sort=False), strict=True):
        ids = model.tokenizer(text).input_ids
        seen = reference.watch(model.hf, blocks, torch.tensor([ids]))
        expected = reference.numbers(model.family, model.hf, blocks, seen, 0, range(len(ids)), readout)
        tolerance = TOLERANCE.get(model.family, 1e-4)
        for name in FLOATS:
            np.testing.assert_allclose(
                run.layers(name)[rows.index], expected[name], atol=tolerance, rtol=tolerance, err_msg=name
            )
        np.testing.assert_array_equal(run.layers("top_token_id")[rows.index], expected["top_token_id"])
        assert rows["token_id"].tolist() == ids
        assert rows["next_token_id"].dropna().tolist() == ids[1:]
        assert rows["position"].tolist() == list(range(len(ids)))
    bounds_hold(run)


def bounds_hold(run) -> None:
    """Law 9: every number lies within its declared bounds."""
    entropy = run.layers("entropy")
    assert (entropy >= 0).all()
    assert (entropy <= math.log(run.manifest["model"]["n_vocab"]) + 1e-6).all()
    assert (np.abs(run.layers("io_cosine")) <= 1).all()
    assert (run.layers("norm_ratio") >= 0).all()


def runs_agree(left, right, tolerance) -> None:
    """The same rows in the same order, floats within the tolerance."""
    np.testing.assert_array_equal(left.positions.columns, right.positions.columns)
    for name in ("prompt_id", "position", "token_id", "next_token_id", "is_generated"):
        assert left.positions[name].astype("string").tolist() == right.positions[name].astype("string").tolist(), name
    for name in FLOATS:
        np.testing.assert_allclose(left.layers(name), right.layers(name), atol=tolerance, rtol=tolerance, err_msg=name)


def hook_count(hf) -> int:
    """Hooks on any module of the model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hf.modules())


def fresh(family: str, **changes):
    """A tiny model of the family that a test may break."""
    from layerlens.models import tiny_tokenizer

    return ll.load(tiny_model(family, **changes), tokenizer=tiny_tokenizer())


def valley_is_eq_7(valley_layers) -> None:
    """Law 7: on every sequence of four entropies out of five values, ties and NaN included, for every window."""
    from itertools import product

    from tests.lens.test_criterion import valley

    rows = torch.tensor(list(product([0.0, 1.0, 2.0, math.inf, math.nan], repeat=4)))
    for window in (1, 2, 3, 4):
        assert valley_layers(rows, window).tolist() == [valley(row, window) for row in rows.tolist()]
