"""How peaked is what attention and MLP return, in a trace, against float64 from hooks on the modules."""

import math

import numpy as np
import pytest
import torch

import layerlens as ll
from layerlens.models import tiny_model, tiny_tokenizer
from layerlens.records.schema import CONFIDENCE, VOCAB_CONFIDENCE
from tests import reference
from tests.conftest import tiny
from tests.invariants.laws import drawn_lens
from tests.refusals import refused
from tests.thorough import combined

TEXTS = ["Hello there", "x", "What is it?"]
COLUMNS = (CONFIDENCE.name, VOCAB_CONFIDENCE.name)
# the modules of each block, by the names that transformers' code uses; side by side in one block, they are summed
PARTS = {
    "llama": (["self_attn"], ["mlp"]),
    "gemma2": (["self_attn"], ["mlp"]),
    "gpt2": (["attn"], ["mlp"]),
    "gptj": (["attn"], ["mlp"]),
    "falcon": (["self_attention"], ["mlp"]),  # whose blocks add to what the MLP returned, in place
    "qwen3_moe": (["self_attn"], ["mlp"]),
    "falcon_h1": (["self_attn", "mamba"], ["feed_forward"]),
}
# float32; recurrences compute a full pass in chunks, and single steps one by one
TOLERANCE = {"falcon_h1": 2e-4}


def by_hand(family, hf, ids):
    """Both columns of every position of a text, [positions, L] each."""
    is_falcon = family == "falcon"
    blocks, tail = (hf.transformer.h, [hf.transformer.ln_f]) if is_falcon else reference.structure(hf)
    returned = {}

    def keep(name):
        def hook(_, __, output):
            first = output[0] if isinstance(output, tuple | list) else output
            returned[name] = first.detach().double().reshape(len(ids), -1).clone()

        return hook

    handles = [
        getattr(block, name).register_forward_hook(keep((number, name)))
        for number, block in enumerate(blocks)
        for names in PARTS[family]
        for name in names
    ]
    with torch.no_grad():
        hf(input_ids=torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    readout = reference.own_readout(hf, tail)
    found = {name: np.zeros((len(ids), len(blocks))) for name in COLUMNS}
    for number in range(len(blocks)):
        for names in PARTS[family]:
            states = sum(returned[number, name] for name in names)
            for column, values in zip(COLUMNS, (states, readout(states)), strict=True):
                probs = torch.softmax(values, -1)
                entropy = torch.special.entr(probs).sum(-1)
                found[column][:, number] += (1 - entropy / math.log(values.shape[-1])).numpy()
    return found


def assert_is_by_hand(family, model, run):
    for text, (_, rows) in zip(TEXTS, run.positions.groupby("prompt_id", sort=False), strict=True):
        emitted = rows.loc[rows["is_generated"], "next_token_id"].tolist()
        ids = [*model.tokenizer(text).input_ids, *emitted[:-1]]
        expected = by_hand(family, model.hf, ids)
        for name in COLUMNS:
            found = run.layers(name)[rows.index]
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected[name][rows["position"]], atol=TOLERANCE.get(family, 2e-5))
            assert (found >= 0).all()
            assert (found <= 2).all()


@pytest.mark.parametrize("mode", ["generate", "replay"])
@pytest.mark.parametrize("family", PARTS)
def test_both_columns_are_their_formulas(run_of, family, mode):
    """For texts of different lengths in one batch, and all positions of them."""
    model = tiny(family)
    options = {"max_new_tokens": 7, "batch_size": 3, "mode": mode, "positions": "all"}
    run = run_of(model, TEXTS, confidence=True, **options)
    assert_is_by_hand(family, model, run)
    one, other = (run.layers(name) for name in COLUMNS)
    assert np.abs(one - other).max() > 1e-3, "two measures"
    assert np.ptp(one, axis=0).min() > 1e-4, "which differ from token to token"


@pytest.mark.parametrize("mode", ["generate", "replay"])
@pytest.mark.parametrize("family", ["llama", "falcon_h1"])
def test_they_change_no_other_column(run_of, family, mode):
    options = {"max_new_tokens": 7, "batch_size": 1, "mode": mode, "sublayers": True, "top": 2}
    plain, run = (run_of(tiny(family), TEXTS, confidence=asked, **options) for asked in (False, True))
    assert list(run.tokens.columns) == [*plain.tokens.columns, *COLUMNS]
    assert plain.positions.equals(run.positions)
    for name in set(plain.tokens.columns) - set(plain.positions.columns):
        np.testing.assert_array_equal(plain.layers(name), run.layers(name))
    assert (plain.has(COLUMNS[0]), run.has(COLUMNS[0])) == (False, True)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_states_that_stand_out_have_a_confidence_of_two_at_most(run_of, family):
    """Where one entry of what attention and MLP return is much larger than the others."""
    hf = tiny_model(family)
    model = ll.load(hf, tokenizer=tiny_tokenizer())
    with torch.no_grad():
        for block in model.blocks:
            block.self_attn.o_proj.weight.mul_(1000)
            block.mlp.down_proj.weight.mul_(1000)
    run = run_of(model, TEXTS, max_new_tokens=3, confidence=True, positions="all", mode="replay")
    found = run.layers(COLUMNS[0])
    assert found.max() > 1.9
    assert found.min() >= 0
    assert found.max() <= 2
    expected = by_hand(family, hf, model.tokenizer(TEXTS[0]).input_ids)[COLUMNS[0]]
    np.testing.assert_allclose(found[: len(expected)], expected, atol=1e-4)


def test_states_that_are_all_alike_have_a_confidence_of_zero(run_of):
    model = ll.load(tiny_model("llama"), tokenizer=tiny_tokenizer())
    with torch.no_grad():
        for block in model.blocks:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    run = run_of(model, TEXTS, max_new_tokens=3, confidence=True)
    np.testing.assert_allclose(run.layers(COLUMNS[0]), 0, atol=1e-6)


@pytest.mark.parametrize("mode", ["generate", "replay"])
@pytest.mark.parametrize("family", ["mamba2", "bloom", "opt"])
def test_they_are_null_where_the_parts_cannot_be_told_apart(run_of, family, mode):
    """A mixer alone, parts that return the stream with what they add, and an MLP that is spread over the block."""
    run = run_of(tiny(family), TEXTS[:1], max_new_tokens=3, mode=mode, confidence=True)
    for name in COLUMNS:
        assert np.isnan(run.layers(name)).all()
        assert run.layers(name).shape == (3, run.n_layers)
    assert np.isfinite(run.layers("entropy")).all()


@pytest.mark.parametrize(
    ("family", "mode", "policy"),
    combined(
        ["llama", "gemma2", "gptj", "qwen3_moe"],
        ["generate", "replay"],
        [ll.FixedSkip([2], length=4, threshold=0.0), ll.Swift(context_window=2, length=4)],
        n=5,
    ),
)
def test_drafts_change_no_number(run_of, family, mode, policy):
    """What parts return in a draft, where some are left out, is in no record."""
    options = {"max_new_tokens": 14, "batch_size": 3, "mode": mode, "positions": "all", "confidence": True}
    model = tiny(family)
    drafter = ll.Drafter(model, policy)
    plain, drafted = run_of(model, TEXTS, **options), run_of(model, TEXTS, draft=drafter, **options)
    assert plain.positions.equals(drafted.positions)
    for name in COLUMNS:
        np.testing.assert_allclose(plain.layers(name), drafted.layers(name), atol=2e-5)
    assert drafter.rounds["drafted"].sum() > 0
    assert_is_by_hand(family, model, drafted)


def test_another_library_does_not_say_them(tiny_folder, run_of, tmp_path):
    pytest.importorskip("nnsight")
    model = ll.load(tiny_folder("llama"), backend="nnsight")
    with refused(ll.OptionError, "confidence", True):
        run_of(model, TEXTS, max_new_tokens=2, confidence=True)
    assert not list(tmp_path.iterdir())


def test_transformer_lens_says_them_too(tiny_folder, run_of):
    pytest.importorskip("transformer_lens")
    folder = tiny_folder("llama")
    options = {"max_new_tokens": 4, "confidence": True}
    one, other = (
        run_of(ll.load(folder, backend=name), TEXTS, **options) for name in ("transformers", "transformer-lens")
    )
    for name in COLUMNS:
        np.testing.assert_allclose(one.layers(name), other.layers(name), atol=1e-5)


def test_they_are_read_with_the_models_head_and_not_through_a_lens(run_of):
    """What a part returns is no state of the stream, which a lens could map."""
    model = tiny("llama")
    plain = run_of(model, TEXTS, max_new_tokens=4, confidence=True)
    read = run_of(model, TEXTS, max_new_tokens=4, confidence=True, lens=drawn_lens(model)[0])
    assert np.abs(plain.layers("entropy")[:, :-1] - read.layers("entropy")[:, :-1]).max() > 0.1
    for name in COLUMNS:
        np.testing.assert_allclose(plain.layers(name), read.layers(name), atol=1e-6)
