"""Passes of several tokens, what is taken back, and blocks that are left out, against whole passes of transformers."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

import layerlens as ll
from layerlens.compat import windows_rewind
from layerlens.decode.chooser import Chooser
from layerlens.decode.forward import Forward
from layerlens.decode.prompts import pad
from layerlens.decode.speculative.skipping import indispensable, skipping
from layerlens.errors import ModelError, OptionError
from layerlens.models import tiny_names
from tests.conftest import STATEFUL, stateful, tiny
from tests.invariants.laws import DEFAULT_TOLERANCE, TOLERANCE

PROMPTS = [[17, 200, 45, 3, 99, 30, 120], [250, 31, 77]]
NEXT = [[8, 61, 140, 33, 9, 210], [5, 19, 88, 7, 154, 42]]
WRONG = torch.tensor([[101, 102, 103, 104], [105, 106, 107, 108]])
# their states are sums over the whole text, of which no token can be taken back
RECURRENT = {
    "falcon_h1",
    "mamba",
    "mamba2",
    "minimax",
    "nemotron_h",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_next",
    "recurrent_gemma",
    "rwkv",
}
FAMILIES = [*tiny_names(), *STATEFUL]


def model_of(family):
    return stateful(family) if family in STATEFUL else tiny(family)


def begun(model, *, static=False, rewinds=True):
    """The prompts, read as a batch that is padded on the left; and the logits after them."""
    ids, mask = pad(PROMPTS, 0, left=True)
    forward = Forward(model, ids, mask, 16, static=static, rewinds=rewinds)
    return forward, forward.prompts()


@torch.no_grad()
def whole(model, n_next):
    """Of each row alone, without a cache: the logits after its last n tokens, [rows, n, vocab]."""
    rows = []
    for prompt, following in zip(PROMPTS, NEXT, strict=True):
        ids = torch.tensor([prompt + following[:n_next]])
        rows.append(model.hf(input_ids=ids, use_cache=False).logits[0, -n_next:].float())
    return torch.stack(rows)


def agrees(model, found, expected):
    within = 20 * TOLERANCE.get(model.family, DEFAULT_TOLERANCE)  # logits, of which an entropy is an average
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < within * max(1, expected.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_several_tokens_in_one_pass_are_as_many_passes(family):
    model = model_of(family)
    forward, _ = begun(model)
    first = forward.step(torch.tensor(NEXT)[:, :1])
    if family in RECURRENT or (has_window(model) and not windows_rewind()):
        with pytest.raises(ModelError):
            forward.step(torch.tensor(NEXT)[:, 1:5])
        return
    found = forward.step(torch.tensor(NEXT)[:, 1:5], n_read=4)
    agrees(model, torch.cat([first, found], dim=1), whole(model, 5))
    assert forward.step(torch.tensor(NEXT)[:, 5:]).shape == (2, 1, model.n_vocab)


@torch.no_grad()
def test_what_cannot_be_read_or_taken_back_is_refused():
    """Instead of wrong logits: tokens that there is no room for, other positions than are chosen for, too many back."""
    model = tiny("gemma2" if windows_rewind() else "llama")
    forward, _ = begun(model)
    for refused_number in (-1, 1):
        with pytest.raises(OptionError) as refused:
            forward.rewind(refused_number)
        assert refused.value.given == refused_number
    forward.step(WRONG)
    forward.rewind(3)
    with pytest.raises(OptionError):
        forward.rewind(1)
    with begun_choosing(model) as forward, pytest.raises(OptionError) as refused:
        forward.step(WRONG, n_read=3)
    assert refused.value.given == 3
    for static in (False, True):
        forward = Forward(tiny("llama"), *pad(PROMPTS, 0, left=True), 3, static=static)
        forward.prompts()
        with pytest.raises(OptionError) as refused:
            forward.step(WRONG)
        assert refused.value.given == 4
        forward.step(WRONG[:, :3])
        with pytest.raises(OptionError):
            forward.step(WRONG[:, :1])
    plain, _ = begun(tiny("gemma2"), rewinds=False)
    assert not plain.can_rewind, "its windows keep no more than they need"
    mamba, _ = begun(stateful("mamba"))
    with pytest.raises(ModelError):
        mamba.rewind(0)


@contextmanager
def begun_choosing(model):
    with Chooser(model, ll.Fixed(1)).choosing():
        forward, _ = begun(model)
        yield forward


@torch.no_grad()
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_taken_back_was_never_read(family, static):
    model = model_of(family)
    forward, _ = begun(model, static=static)
    keeps_all = not forward.is_static and windows_rewind()
    assert forward.can_rewind == (family not in RECURRENT and (keeps_all or not has_window(model)))
    if not forward.can_rewind:
        return
    forward.step(WRONG)
    forward.rewind(4)
    forward.step(torch.cat([torch.tensor(NEXT)[:, :2], WRONG[:, :2]], dim=1))
    forward.rewind(2)
    forward.step(torch.tensor(NEXT)[:, 2:3])
    forward.rewind(0)
    found = forward.step(torch.tensor(NEXT)[:, 3:], n_read=3)
    agrees(model, found, whole(model, 6)[:, 3:])


def has_window(model):
    """Whether a cache of the model drops what has left a window; GPT-Neo's keeps everything."""
    return ("sliding" in model.layer_kinds and model.family != "gpt_neo") or model.family == "llama4_text"


@contextmanager
def computed_in_vain(model, skipped):
    """Blocks whose output is thrown away for what they were given."""
    first = lambda args, kwargs: args[0] if args else kwargs["hidden_states"]  # noqa: E731
    handles = [
        model.blocks[number].register_forward_hook(
            lambda _, args, kwargs, out: (
                first(args, kwargs) if isinstance(out, torch.Tensor) else (first(args, kwargs), *out[1:])
            ),
            with_kwargs=True,
        )
        for number in skipped
    ]
    yield
    for handle in handles:
        handle.remove()


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_that_are_left_out(family):
    """They change nothing, and nothing inside of them runs; afterwards the model is as it was."""
    model = model_of(family)
    kinds = model.layer_kinds
    able = sorted(set(range(model.n_layers)) - indispensable(model.blocks, kinds))
    skipped = able[-2:]
    assert skipped
    ids = torch.tensor([PROMPTS[0]])
    before = model.hf(input_ids=ids, use_cache=False).logits
    with computed_in_vain(model, skipped):
        expected = model.hf(input_ids=ids, use_cache=False).logits
    calls = []
    handles = [
        module.register_forward_hook(lambda *_: calls.append(1))
        for number in skipped
        for module in set(model.blocks[number].modules()) - set(model.blocks[0].modules())  # which can share some
        if module is not model.blocks[number]
    ]
    with skipping(model.blocks, kinds, skipped):
        assert torch.equal(model.hf(input_ids=ids, use_cache=False).logits, expected)
        assert not calls
        with pytest.raises(ZeroDivisionError), skipping(model.blocks, kinds, able[:1]):
            1 / 0  # noqa: B018
        assert torch.equal(model.hf(input_ids=ids, use_cache=False).logits, expected)
    for handle in handles:
        handle.remove()
    assert not torch.equal(before, expected)
    assert torch.equal(model.hf(input_ids=ids, use_cache=False).logits, before)
    with skipping(model.blocks, kinds, []):
        assert torch.equal(model.hf(input_ids=ids, use_cache=False).logits, before)


@torch.no_grad()
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in RECURRENT])
def test_a_draft_that_is_taken_back_leaves_no_trace(family, static):
    """Three tokens through some blocks, taken back; then the true ones through all, as self-speculation does."""
    model = model_of(family)
    forward, _ = begun(model, static=static)
    if not forward.can_rewind:
        pytest.skip("a window of fixed size overwrites what it would have to give back")
    able = sorted(set(range(model.n_layers)) - indispensable(model.blocks, model.layer_kinds))
    with skipping(model.blocks, model.layer_kinds, able[:2]):
        for token_ids in WRONG[:, :3].split(1, dim=1):
            forward.step(token_ids)
    forward.rewind(3)
    agrees(model, forward.step(torch.tensor(NEXT)[:, :4], n_read=4), whole(model, 4))


@torch.no_grad()
def test_only_this_thread_leaves_blocks_out():
    model, ids = tiny("llama"), torch.tensor([PROMPTS[0]])
    whole_model = model.hf(input_ids=ids, use_cache=False).logits
    with ThreadPoolExecutor(1) as others, skipping(model.blocks, model.layer_kinds, [1, 2]):
        there = others.submit(torch.no_grad()(lambda: model.hf(input_ids=ids, use_cache=False).logits)).result()
        here = model.hf(input_ids=ids, use_cache=False).logits
    assert torch.equal(there, whole_model)
    assert not torch.equal(here, whole_model)


@pytest.mark.parametrize(("skipped", "given"), [([0], 0), ([1, 9], 9), ([-1], -1), ([True], True), ([2.0], 2.0)])
def test_what_cannot_be_left_out_is_refused(skipped, given):
    model = tiny("llama")
    with pytest.raises(OptionError) as refused, skipping(model.blocks, model.layer_kinds, skipped):
        pass
    assert refused.value.given == given
    assert all("forward" not in vars(block) for block in model.blocks)


def test_the_first_block_of_each_kind_stays():
    gemma = tiny("gemma2")
    assert indispensable(gemma.blocks, gemma.layer_kinds) == {0, 1}
    assert indispensable(tiny("llama").blocks, tiny("llama").layer_kinds) == {0}


@torch.no_grad()
@pytest.mark.parametrize(
    "strategy", [ll.Valley(window=3), ll.Valley(window=3, p=0.5), ll.Fixed(1), ll.Last(), ll.SLED()]
)
def test_a_strategy_chooses_at_every_position_that_is_read(strategy):
    """As it does where the positions come one after the other, and draws for each of them."""
    model, ids = tiny("llama"), torch.tensor(NEXT)
    chooser = Chooser(model, strategy)
    with chooser.choosing():
        forward, _ = begun(model)
        chooser.n_read = 4
        found = forward.step(ids[:, :4], n_read=4)
    decided = chooser.decisions
    assert len(decided.numbers) == 8
    one = Chooser(model, strategy)
    if decided.valley_layer.min() > 0:
        assert decided.valley_layer.unique().numel() > 1, "otherwise positions would not differ"
    with one.choosing():
        forward, _ = begun(model)
        one.generator.manual_seed(0)
        for place in range(4):
            logits = forward.step(ids[:, place : place + 1])[:, 0]
            assert torch.equal(one.decisions.valley_layer, decided.valley_layer.view(2, 4)[:, place])
            same = one.decisions.selected_layer == decided.selected_layer.view(2, 4)[:, place]
            if strategy != ll.Valley(window=3, p=0.5):
                assert same.all()
            agrees(model, found[:, place][same], logits[same])
    selected = decided.selected_layer.view(2, 4)
    if strategy == ll.Valley(window=3, p=0.5):
        drawn = selected != decided.valley_layer.view(2, 4)
        assert drawn.any()
