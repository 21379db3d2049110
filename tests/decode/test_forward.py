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
from layerlens.decode.speculative.branching import branching_fault
from layerlens.decode.speculative.skipping import indispensable, parts_of, skipping
from layerlens.decode.speculative.skipset import SkipSet
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


def begun(model, *, static=False, rewinds=True, n_spare=0):
    """The prompts, read as a batch that is padded on the left; and the logits after them."""
    ids, mask = pad(PROMPTS, 0, left=True)
    forward = Forward(model, ids, mask, 16, static=static, rewinds=rewinds, n_spare=n_spare)
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
    able = sorted(set(range(model.n_layers)) - indispensable(model))
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
    with skipping(model, SkipSet.of_blocks(skipped)):
        assert torch.equal(model.hf(input_ids=ids, use_cache=False).logits, expected)
        assert not calls
        with pytest.raises(ZeroDivisionError), skipping(model, SkipSet.of_blocks(able[:1])):
            1 / 0  # noqa: B018
        assert torch.equal(model.hf(input_ids=ids, use_cache=False).logits, expected)
    for handle in handles:
        handle.remove()
    assert not torch.equal(before, expected)
    assert torch.equal(model.hf(input_ids=ids, use_cache=False).logits, before)
    with skipping(model, SkipSet()):
        assert torch.equal(model.hf(input_ids=ids, use_cache=False).logits, before)


@contextmanager
def zeros_of(modules):
    """Modules whose output is thrown away for zeros."""

    def zero(_module, _args, out):
        first = out if isinstance(out, torch.Tensor) else out[0]
        return torch.zeros_like(first) if isinstance(out, torch.Tensor) else (torch.zeros_like(first), *out[1:])

    handles = [module.register_forward_hook(zero) for module in modules]
    yield
    for handle in handles:
        handle.remove()


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_parts_of_blocks_that_are_left_out(family):
    """The attention of one block and the MLP of another: nothing inside of them runs."""
    model = model_of(family)
    able = sorted(set(range(model.n_layers)) - indispensable(model))
    parts = parts_of(model)
    skips = SkipSet(frozenset(able[:1]), frozenset(able[-1:]))
    if parts is None:
        with pytest.raises(ModelError), skipping(model, SkipSet(frozenset(able[:1]))):
            pass
        return
    silent = [*parts[0][able[0]], *parts[1][able[-1]]]
    ids = torch.tensor([PROMPTS[0]])
    before = model.hf(input_ids=ids, use_cache=False).logits
    with zeros_of(silent):
        expected = model.hf(input_ids=ids, use_cache=False).logits
    calls = []
    shared = {module for number in indispensable(model) for module in model.blocks[number].modules()}
    inner = {module for part in silent for module in part.modules()} - {*silent, *shared}
    handles = [module.register_forward_hook(lambda *_: calls.append(1)) for module in inner]
    with skipping(model, skips):
        assert torch.equal(model.hf(input_ids=ids, use_cache=False).logits, expected)
        assert not calls
    for handle in handles:
        handle.remove()
    assert not torch.equal(before, expected)
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
    able = sorted(set(range(model.n_layers)) - indispensable(model))
    with skipping(model, SkipSet.of_blocks(able[:2])):
        for token_ids in WRONG[:, :3].split(1, dim=1):
            forward.step(token_ids)
    forward.rewind(3)
    agrees(model, forward.step(torch.tensor(NEXT)[:, :4], n_read=4), whole(model, 4))


@torch.no_grad()
def test_only_this_thread_leaves_blocks_out():
    model, ids = tiny("llama"), torch.tensor([PROMPTS[0]])
    whole_model = model.hf(input_ids=ids, use_cache=False).logits
    with ThreadPoolExecutor(1) as others, skipping(model, SkipSet.of_blocks([1, 2])):
        there = others.submit(torch.no_grad()(lambda: model.hf(input_ids=ids, use_cache=False).logits)).result()
        here = model.hf(input_ids=ids, use_cache=False).logits
    assert torch.equal(there, whole_model)
    assert not torch.equal(here, whole_model)


@pytest.mark.parametrize("skipped", [[0], [1, 9], [-1]])
def test_what_cannot_be_left_out_is_refused(skipped):
    model = tiny("llama")
    with pytest.raises(OptionError) as refused, skipping(model, SkipSet.of_blocks(skipped)):
        pass
    assert refused.value.option == "skipped"
    assert all("forward" not in vars(block) for block in model.blocks)


def test_the_first_block_of_each_kind_stays():
    gemma = tiny("gemma2")
    assert indispensable(gemma) == {0, 1}
    assert indispensable(tiny("llama")) == {0}


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


@torch.no_grad()
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in RECURRENT])
def test_rows_keep_different_tokens_of_a_pass(family):
    """The first row keeps two of four tokens, the second all. Both go on as if nothing else had been read."""
    model = model_of(family)
    forward, _ = begun(model)
    if not forward.can_rewind:
        pytest.skip("a window of fixed size overwrites what it would have to give back")
    for n_read in (4, 3):
        read = torch.tensor(NEXT)[:, :n_read].clone()
        read[0, 2:] = WRONG[0, : n_read - 2]
        forward.step(read)
        forward.retract(n_read, [range(2), range(n_read)])
        found = forward.step(torch.tensor([NEXT[0][2:4], NEXT[1][n_read : n_read + 2]]), n_read=2)
        expected = alone(model, [NEXT[0][:4], NEXT[1][: n_read + 2]])
        agrees(model, found, torch.stack([logits[-2:] for logits in expected]))
        forward, _ = begun(model)


def alone(model, following):
    """Of each row alone, without a cache: the logits after each of its further tokens."""
    rows = []
    for prompt, tokens in zip(PROMPTS, following, strict=True):
        logits = model.hf(input_ids=torch.tensor([prompt + tokens]), use_cache=False).logits[0].float()
        rows.append(logits[len(prompt) :])
    return rows


TREE = [[8, 61, 140, 33, 9], [5, 19, 88, 7, 42]]
PARENTS = torch.tensor([[-1, 0, 0, 1, 1], [-1, 0, 1, 0, 2]])
BRANCHES = [[[0, 1, 3], [0, 1, 4], [0, 2]], [[0, 1, 2, 4], [0, 3]]]
# they make the masks of their layers from the two-dimensional one alone, or count positions by themselves
UNBRANCHED = {"bloom"}


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_tree_of_tokens_is_as_many_texts(family):
    model = model_of(family)
    forward, _ = begun(model, n_spare=1)
    if branching_fault(model):
        print("cannot branch", family, branching_fault(model))
        return
    with forward.aside():
        forward.branch(WRONG[:, :2], torch.tensor([[-1, -1], [-1, 0]]), 2)
    forward.step(torch.tensor([[77], [78]]))
    with forward.aside(1):
        found = forward.branch(torch.tensor(TREE), PARENTS, 5)
    for row, branches in enumerate(BRANCHES):
        for branch in branches:
            texts = [[1], [1]]
            texts[row] = [TREE[row][node] for node in branch]
            expected = alone(model, texts)[row]
            agrees(model, found[row : row + 1, branch], expected.unsqueeze(0))
    forward.branch(torch.tensor(TREE), PARENTS, 5)
    forward.retract(5, [[0, 1, 4], [0, 3]])
    found = forward.step(torch.tensor([[55], [56]]))
    expected = alone(model, [[77, 8, 61, 9, 55], [78, 5, 7, 56]])
    agrees(model, found, torch.stack([logits[-1:] for logits in expected]))
