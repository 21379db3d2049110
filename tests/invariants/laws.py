"""The laws of the design as checks that raise AssertionError; `test_seeded_mistakes.py` shows that each can fail."""

import itertools
import math

import numpy as np
import torch

import layerlens as ll
from layerlens import lens
from layerlens.decode.batch import decode_batch
from layerlens.decode.chooser import Chooser
from layerlens.decode.contrast import divergence
from layerlens.decode.readouts import Readouts
from layerlens.decode.scan import walk_back
from layerlens.models import Unembed, tiny_model
from layerlens.models.hooks import watch_blocks
from layerlens.records import token_columns
from tests import reference
from tests.decode import plain

FLOATS = ("norm_ratio", "io_cosine", "attn_ratio", "mlp_ratio", "entropy")
TEXTS = ["Hello there, you", "a", "What is this? And that"]
# float32, tiny models; the linear-attention families compute a full pass in chunks and single steps one by one
TOLERANCE = dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), 2e-3)
DEFAULT_TOLERANCE = 5e-5

EVERYTHING = {"kl": True, "js": True, "targets": True, "top": 5, "sublayers": True}

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
    if model.family in reference.MIXER_ALONE:
        assert model.sublayers == [None] * model.n_layers
        return
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
        alone, batched = (
            run_of(model, TEXTS, max_new_tokens=6, mode=mode, batch_size=size, **EVERYTHING) for size in (1, 3)
        )
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
            run_of(model, TEXTS, max_new_tokens=6, mode=mode, positions=positions, **EVERYTHING)
            for mode in ("generate", "replay")
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
    run = run_of(model, TEXTS, max_new_tokens=0, batch_size=2, **EVERYTHING)
    _agrees(model, run)


def lenses_agree_with_the_reference(model, run_of) -> None:
    """The same through a lens, whose states float64 maps; and the last layer reads what it reads without one."""
    lens_of, mapped = drawn_lens(model)
    run = run_of(model, TEXTS, max_new_tokens=0, batch_size=2, lens=lens_of, **EVERYTHING)
    _agrees(model, run, mapped)
    plain = run_of(model, TEXTS, max_new_tokens=0, batch_size=2, **EVERYTHING)
    for name in ("entropy", "top_token_id", "next_log_prob", "next_rank", "top_k_token_ids", "top_k_probs"):
        np.testing.assert_array_equal(run.layers(name)[:, -1], plain.layers(name)[:, -1])
    assert not np.allclose(run.layers("entropy")[:, 0], plain.layers("entropy")[:, 0])


def drawn_lens(model):
    """A linear lens near the identity, and the map of float64 states that it is."""
    draws = torch.Generator().manual_seed(5)
    width, layers = model.d_model, range(model.n_layers)
    weights = {layer: torch.eye(width) + torch.randn(width, width, generator=draws) / width for layer in layers}
    biases = {layer: torch.randn(width, generator=draws) / 4 for layer in layers}
    made = lens.Affine("linear", weights, biases, model.n_layers, adds=False, source="drawn", sha256="0")
    return made, lambda states, layer: states @ weights[layer].double().T + biases[layer].double()


def _agrees(model, run, transport=lambda states, layer: states) -> None:
    blocks, tail = reference.structure(model.hf)
    readout = reference.own_readout(model.hf, tail)
    for text, (_, rows) in zip(TEXTS, run.positions.groupby("prompt_id", sort=False), strict=True):
        ids = model.tokenizer(text).input_ids
        seen = reference.watch(model.hf, blocks, torch.tensor([ids]))
        expected = reference.numbers(model.family, model.hf, blocks, seen, 0, range(len(ids)), readout, transport)
        tolerance = TOLERANCE.get(model.family, 1e-4)
        for name in (*FLOATS, "kl_last_to_layer", "js_from_last", "half_entropy"):
            np.testing.assert_allclose(
                run.layers(name)[rows.index], expected[name], atol=tolerance, rtol=tolerance, err_msg=name
            )
        for name in ("top_token_id", "half_top_token_id"):
            np.testing.assert_array_equal(run.layers(name)[rows.index], expected[name])
        words_stand_where_they_do(run, rows.index, [*ids[1:], -1], expected["log_probs"], tolerance)
        assert rows["token_id"].tolist() == ids
        assert rows["next_token_id"].dropna().tolist() == ids[1:]
        assert rows["position"].tolist() == list(range(len(ids)))
    bounds_hold(run)


def words_stand_where_they_do(run, rows, next_ids, log_probs, tolerance) -> None:
    """Log-probability and rank of the token that followed, and the first words, from float64 [positions, L, V]."""
    for row, token_id, expected in zip(rows, next_ids, log_probs, strict=True):
        if token_id < 0:
            assert np.isnan(run.layers("next_log_prob")[row]).all()
            assert (run.layers("next_rank")[row] == -1).all()
        else:
            own = expected[:, token_id]
            np.testing.assert_allclose(run.layers("next_log_prob")[row], own, atol=tolerance, rtol=tolerance)
            least, most = ((expected > (own + by)[:, np.newaxis]).sum(1) for by in (tolerance, -tolerance))
            assert ((least <= run.layers("next_rank")[row]) & (run.layers("next_rank")[row] <= most)).all()
        first = np.exp(-np.sort(-expected, axis=1)[:, : EVERYTHING["top"]])
        np.testing.assert_allclose(run.layers("top_k_probs")[row], first, atol=tolerance, rtol=tolerance)
        of_ours = np.exp(np.take_along_axis(expected, run.layers("top_k_token_ids")[row], 1))
        np.testing.assert_allclose(of_ours, first, atol=tolerance, rtol=tolerance)


def bounds_hold(run) -> None:
    """Law 9: every number lies within its declared bounds."""
    entropy = run.layers("entropy")
    assert (entropy >= 0).all()
    assert (entropy <= math.log(run.manifest["model"]["n_vocab"]) + 1e-6).all()
    assert (np.abs(run.layers("io_cosine")) <= 1).all()
    assert (run.layers("norm_ratio") >= 0).all()
    assert (run.layers("kl_last_to_layer") >= 0).all()
    assert (run.layers("js_from_last") >= 0).all()
    assert (run.layers("js_from_last") <= math.log(2) + 1e-6).all()
    assert not (run.layers("next_log_prob") > 0).any()
    assert (run.layers("next_rank") < run.manifest["model"]["n_vocab"]).all()


def runs_agree(left, right, tolerance) -> None:
    """The same rows in the same order, floats of the columns that both have within the tolerance."""
    np.testing.assert_array_equal(left.positions.columns, right.positions.columns)
    for name in ("prompt_id", "position", "token_id", "next_token_id", "is_generated"):
        assert left.positions[name].astype("string").tolist() == right.positions[name].astype("string").tolist(), name
    both = set(token_columns(left.manifest)) & set(token_columns(right.manifest))
    declared = [column.name for column in both if column.per_layer and not column.is_nested]
    for name in [name for name in declared if not name.endswith(("_id", "_rank"))]:
        np.testing.assert_allclose(left.layers(name), right.layers(name), atol=tolerance, rtol=tolerance, err_msg=name)


def hook_count(hf) -> int:
    """Hooks on any module of the model. Those do not count that transformers leaves there for good where hidden states
    were asked for once."""
    found = [hook for m in hf.modules() for kind in (m._forward_hooks, m._forward_pre_hooks) for hook in kind.values()]
    return sum(not getattr(hook, "__module__", "").startswith("transformers.") for hook in found)


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


def switched_off_is_the_model(model) -> None:
    """Law 6: with p = 0, or a window of one, the logits are the model's own bit for bit."""
    options = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    own = model.hf.generate(input_ids=IDS, **options)
    for strategy in (ll.Last(), ll.Valley(window=1), ll.Valley(p=0.0), ll.Fixed(0)):
        with ll.decoding(model, strategy):
            ours = model.hf.generate(input_ids=IDS, **options)
        assert torch.equal(ours.sequences, own.sequences)
        assert all(torch.equal(one, other) for one, other in zip(ours.logits, own.logits, strict=True))


def walk_is_equation_7(scan: str) -> None:
    """Law 7: where the walk ends is a plain reading of Eq. 7, ties and NaN included."""
    nan = math.nan
    curves = [[1, 2, 3], [3, 2, 1], [2, 1, 2], [1, 1, 2], [2, 2, 2], [1, 2, 2], [nan, 1, 2], [1, nan, 2], [1, 2, nan]]
    values = torch.tensor(curves, dtype=torch.float32)
    unembed = Unembed(tail=[], weight=torch.ones(2, 1))  # each state is its own logit
    states = {layer + 1: values[:, layer : layer + 1] for layer in range(3)}
    for window, may_branch in itertools.product((1, 2, 3), (True, False)):
        readouts = Readouts(unembed, states, 3, torch.zeros(9), may_branch=may_branch)
        walk = walk_back(readouts, window, lambda logits: logits[:, 0], scan)
        expected = [plain.walk(curve, window) for curve in curves]
        assert (3 - walk.steps).tolist() == expected
        chosen = [curve[layer - 1] for curve, layer in zip(curves, expected, strict=True)]
        np.testing.assert_array_equal(walk.valley_logits[:, 0], chosen)


def decoding_is_the_plain_loop(model) -> None:
    """Law 7 in the whole loop: tokens and layers are those of hooks, whole float64 logits and Eq. 7; so they are where
    states go through a lens first."""
    _decodes_as_plain(model, lens.IDENTITY, lambda states, layer: states)
    _decodes_as_plain(model, *drawn_lens(model))


def _decodes_as_plain(model, transport, mapped) -> None:
    prompts = [[5, 9, 20, 7, 44, 8], [7, 13, 99]]
    tokens, layers = plain.decode(model.hf, prompts, 10, window=3, transport=mapped)
    options = ll.GenerateOptions(max_new_tokens=10)
    chooser = Chooser(model, ll.Valley(window=3), transport=transport)
    decoded = decode_batch(model, prompts, chooser, options, 0)
    n_kept = [len(output) for output in decoded.outputs]  # the plain loop knows no end token
    assert decoded.outputs == [row[:n] for row, n in zip(tokens, n_kept, strict=True)]
    chosen = [decisions.selected_layer.tolist() for decisions in decoded.decisions]
    assert [row[:n] for row, n in zip(chosen, n_kept, strict=True)] == [
        row[:n] for row, n in zip(layers, n_kept, strict=True)
    ]


def divergence_is_its_formula() -> None:
    """The published divergence is half of KL(M to p) and KL(M to q), M the mean; its direction matters."""
    p, q = ([0.7, 0.2, 0.1], [0.1, 0.1, 0.8])
    mean = [(one + other) / 2 for one, other in zip(p, q, strict=True)]
    kl = lambda left, right: sum(one * math.log(one / other) for one, other in zip(left, right, strict=True))  # noqa: E731
    left, right = (torch.tensor(probs).log().view(1, 1, 3) for probs in (p, q))
    assert math.isclose(divergence(left, right, "published"), (kl(mean, p) + kl(mean, q)) / 2, rel_tol=1e-5)
    assert math.isclose(divergence(left, right, "js"), (kl(p, mean) + kl(q, mean)) / 2, rel_tol=1e-5)
