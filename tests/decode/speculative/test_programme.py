"""The dynamic programme of CLaSp and KnapSpec, against one in plain Python that keeps sets of modules and computes each
state anew from its set."""

import random
from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise, product
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import layerlens as ll
from layerlens.decode.forward import Forward
from layerlens.decode.options import GenerateOptions
from layerlens.decode.prompts import pad
from layerlens.decode.speculative.branching import branching_fault
from layerlens.decode.speculative.clasp import StateSearch
from layerlens.decode.speculative.drafter import Drafter
from layerlens.decode.speculative.lab import Lab
from layerlens.decode.speculative.loop import decode_drafted
from layerlens.decode.speculative.policy import candidates
from layerlens.decode.speculative.programme import Programme
from layerlens.decode.speculative.skipping import parts_of, split, splits
from layerlens.decode.speculative.skipset import SkipSet
from layerlens.models import tiny_names
from layerlens.models.hooks import rewritten
from tests.conftest import tiny
from tests.decode.speculative.passes import cosine, deep, one_round, read

FAMILIES = ["llama", "gemma2", "gpt2"]
PROMPTS = [[17, 200, 45, 3, 99, 30, 120], [250, 31, 77]]
NEXT = [[8, 61, 140, 33, 9, 210], [5, 19, 88, 7, 154, 42]]


class Module(NamedTuple):
    """A step of the programme; one without a weight is never left out."""

    name: Hashable
    weight: int | None


class Best(NamedTuple):
    """For each weight that can be reached: what is left out, and the mean cosine to the whole model's state."""

    left_out: dict[int, frozenset[Hashable]]
    cosines: dict[int, float]
    margin: float
    """The least difference of two cosines of which one was chosen."""


def plain_programme(
    modules: Sequence[Module], most: int, states: Callable[[frozenset[Hashable], int], Sequence[Tensor]]
) -> Best:
    """The docstring of `Programme` read literally.

    Args:
        modules: in order.
        most: the greatest weight.
        states: gives, for what is left out and the number of a module, the state of each row after that module.
    """
    sets: dict[int, frozenset[Hashable]] = {0: frozenset()}
    cosines, margin = {0: 1.0}, 1.0
    for index, (name, weight) in enumerate(modules):
        wanted = states(frozenset(), index)
        after, values = {}, {}
        for left in range(most + 1):
            options = []
            if left in sets:
                options.append(sets[left])
            if weight is not None and left - weight in sets:
                options.append(sets[left - weight] | {name})
            found = []
            for option in options:
                rows = zip(states(option, index), wanted, strict=True)
                found.append(sum(cosine(state, of_all) for state, of_all in rows) / len(wanted))
            if len(found) == 2:
                margin = min(margin, abs(found[0] - found[1]))
            if found:
                values[left], place = max((value, -place) for place, value in enumerate(found))
                after[left] = options[-place]
        sets, cosines = after, values
    return Best(sets, cosines, margin)


class Affine:
    """Made-up modules on small vectors: x → x + A x + b, for several rows at once."""

    def __init__(self, modules: Sequence[Module], n_rows: int, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.modules = modules
        self.start = torch.randn(n_rows, 6, generator=draw)
        self._maps = [(torch.randn(6, 6, generator=draw) * 0.3, torch.randn(6, generator=draw) * 0.5) for _ in modules]
        self._known: dict[tuple[frozenset[Hashable], int], Tensor] = {}

    def apply(self, index: int, states: Tensor) -> Tensor:
        matrix, vector = self._maps[index]
        return states + states @ matrix + vector

    def states(self, left_out: frozenset[Hashable], last: int) -> Tensor:
        """After module `last`, of each row."""
        here = left_out & {module.name for module in self.modules[: last + 1]}
        if (here, last) not in self._known:
            before = self.states(here, last - 1) if last else self.start
            self._known[here, last] = before if self.modules[last].name in here else self.apply(last, before)
        return self._known[here, last]

    def programmed(self, most: int) -> tuple[Programme, Tensor]:
        """The programme after all modules, and its states [rows, weights, width]."""
        programme = Programme(most)
        states = self.start.unsqueeze(1).repeat(1, most + 1, 1)
        for index, (name, weight) in enumerate(self.modules):
            wanted, applied = self.states(frozenset(), index), self.apply(index, states)
            if weight is None:
                states = programme.apply(wanted, applied)
            else:
                states = programme.choose(name, weight, wanted, states, applied)
        return programme, states


def made_up(kind, seed):
    """Modules by name, and the most that can be left out."""
    draw = random.Random(f"{kind} {seed}")
    n = draw.randint(1, 12)
    weights = {
        "ones": [1] * n,
        "mixed": [draw.randint(1, 5) for _ in range(n)],
        "large": [draw.choice([2, 3, 7, 40]) for _ in range(n)],
        "some stay": [draw.choice([None, 1, 2, 3]) for _ in range(n)],
    }[kind]
    return [Module(("module", place), weight) for place, weight in enumerate(weights)], draw.randint(1, 12)


@pytest.mark.parametrize("n_rows", [1, 3])
@pytest.mark.parametrize("kind", ["ones", "mixed", "large", "some stay"])
def test_a_programme_keeps_the_better_of_two_states(kind, n_rows):
    n_left_out = set()
    for seed in range(25):
        modules, most = made_up(kind, seed)
        model = Affine(modules, n_rows, seed)
        expected = plain_programme(modules, most, model.states)
        assert expected.margin > 1e-6, "otherwise rounding could decide"
        programme, states = model.programmed(most)
        for weight in range(most + 1):
            reached = [one for one in expected.left_out if one <= weight]
            assert programme.nearest(weight) == max(reached)
        for weight, left_out in expected.left_out.items():
            found = programme.left_out(weight)
            assert set(found) == left_out
            assert found == [module.name for module in modules if module.name in left_out], "in the model's order"
            assert sum(module.weight for module in modules if module.name in found) == weight
            torch.testing.assert_close(states[:, weight], model.states(left_out, len(modules) - 1))
            assert programme.cosine(weight) == pytest.approx(expected.cosines[weight], abs=1e-5)
            n_left_out.add(len(found))
    assert len(n_left_out) > 2


def test_a_programme_is_no_search_of_every_set():
    """It keeps one set of each weight, and so the best of all sets can be lost; what it keeps is never better."""
    modules = [Module(place, 1) for place in range(7)]
    n_lost = 0
    for seed in range(10):
        model = Affine(modules, 1, seed)
        programme, _ = model.programmed(3)
        wanted = model.states(frozenset(), 6)[0]
        cosines = {
            left_out: cosine(model.states(left_out, 6)[0], wanted)
            for flags in product((False, True), repeat=7)
            if len(left_out := frozenset(place for place, flag in enumerate(flags) if flag)) == 3
        }
        best = max(cosines.values())
        assert programme.cosine(3) == pytest.approx(cosines[frozenset(programme.left_out(3))], abs=1e-5)
        assert programme.cosine(3) <= best + 1e-5
        n_lost += programme.cosine(3) < best - 1e-5
    assert 0 < n_lost < 10


def test_where_nothing_can_be_left_out():
    """A budget of 0, and modules that weigh more than the budget."""
    for weight, most in ((1, 0), (5, 0), (5, 4), (9, 4)):
        model = Affine([Module("a", weight), Module("b", None)], 2, 0)
        programme, states = model.programmed(most)
        assert programme.nearest(most) == 0
        assert programme.left_out(0) == []
        assert programme.cosine(0) == pytest.approx(1)
        torch.testing.assert_close(states[:, 0], model.states(frozenset(), 1))


def begun(model, n_spare=1):
    """Two texts of different lengths, read up to their last pass, which reads three tokens."""
    forward = Forward(model, *pad(PROMPTS, 0, left=True), 16, static=False, rewinds=True, n_spare=n_spare)
    forward.prompts()
    forward.step(torch.tensor(NEXT)[:, :3], n_read=3)
    forward.rewind(0)
    return forward


# of the three tokens of the last pass the first text keeps one
READ = [[0], [0, 1, 2]]
TEXTS = [PROMPTS[0] + NEXT[0][:4], PROMPTS[1] + NEXT[1]]


@torch.no_grad()
def searched(model, policy):
    """What a search chooses after one pass."""
    search = policy.search(model)
    forward = begun(model, search.n_back)
    with search.watching(3):
        forward.step(torch.tensor(NEXT)[:, 3:6], n_read=3)
    forward.retract(3, READ)
    last = one_round(READ, SkipSet(), drafted=[2, 2], accepted=[0, 2])
    before = (forward._n_seen, forward._mask.clone())
    search.after(last, Lab(model, forward, TEXTS, [[0] * 8, [0] * 8]))
    assert (forward._n_seen, *forward._mask.flatten()) == (before[0], *before[1].flatten()), "it leaves nothing behind"
    return search


def of_blocks(model, texts=TEXTS):
    """Gives the states of the last token of each text after a block, by passes that go without other blocks."""

    def states(left_out, index):
        parts = set(product(left_out, ("attention", "mlp")))
        return [read(model, ids, parts, 1).states[index, "mlp"][0] for ids in texts]

    return states


@pytest.mark.parametrize("skip_ratio", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("family", FAMILIES)
def test_clasp_chooses_what_a_plain_programme_chooses(family, skip_ratio):
    model = deep(family)
    able = candidates(model)
    n_skipped = max(1, round(skip_ratio * len(able)))
    modules = [Module(block, 1 if block in able else None) for block in range(model.n_layers)]
    expected = plain_programme(modules, n_skipped, of_blocks(model))
    assert expected.margin > 1e-4, "otherwise rounding could decide"
    search = searched(model, ll.Clasp(skip_ratio=skip_ratio))
    assert search.skips == SkipSet.of_blocks(expected.left_out[n_skipped])
    assert len(search.skips.blocks) == n_skipped
    assert search.skips.found["cosine"] == pytest.approx(expected.cosines[n_skipped], abs=1e-4)
    assert (search.skips.found["policy"], search.n_proposals, search.is_over) == ("clasp", 1, False)


def test_clasp_leaves_out_no_block_that_no_draft_can_do_without():
    """The first two of Gemma 2, which are of different kinds, and the last."""
    search = searched(deep("gemma2"), ll.Clasp(skip_ratio=1))
    assert search.skips == SkipSet.of_blocks({2, 3, 4, 5, 6})
    assert not searched(deep("gemma2"), ll.Clasp(skip_ratio=0)).skips


def test_clasp_looks_at_the_last_verified_token_of_each_text():
    """At another one, such as the last that was read, it would choose another set."""
    model = deep("llama")
    modules = [Module(block, 1 if 0 < block < 7 else None) for block in range(8)]
    others = ([PROMPTS[0] + NEXT[0], PROMPTS[1] + NEXT[1]], TEXTS[:1], TEXTS[1:])
    chosen = [plain_programme(modules, 3, of_blocks(model, texts)).left_out[3] for texts in (TEXTS, *others)]
    assert searched(model, ll.Clasp(skip_ratio=0.5)).skips.blocks == chosen[0]
    assert len(set(chosen)) > 1


@torch.no_grad()
@pytest.mark.parametrize("interval", [1, 3])
def test_clasp_chooses_again_after_an_interval(interval):
    """Between, it looks at nothing and keeps its set."""
    model = deep("llama")
    search = ll.Clasp(search_interval=interval, skip_ratio=0.5).search(model)
    forward = begun(model)
    texts = [PROMPTS[row] + NEXT[row][:3] for row in range(2)]
    found = []
    draw = random.Random(0)
    for _ in range(7):
        token_ids = [draw.randrange(3, 250) for _ in texts]
        with search.watching(1):
            forward.make_room(1)
            forward.step(torch.tensor(token_ids).unsqueeze(1))
        forward.rewind(0)
        texts = [[*text, token] for text, token in zip(texts, token_ids, strict=True)]
        search.after(one_round([[0], [0]], search.skips), Lab(model, forward, texts, [[0], [0]]))
        found.append((search.n_proposals, search.skips))
    assert [n for n, _ in found] == ([1, 2, 3, 4, 5, 6, 7] if interval == 1 else [1, 1, 1, 2, 2, 2, 3])
    assert len({skips for _, skips in found}) > 1
    for (n, skips), (later, others) in pairwise(found):
        assert n < later or skips is others


def each_with_its_own(n_texts, variants):
    """`rewrite` for `rewritten` and `split`, by which every variant goes without what its set names."""

    def chosen(names, before, applied):
        skip = torch.tensor([any(name in variant for name in names) for variant in variants])
        assert before.shape == applied.shape
        assert before.shape[:2] == (n_texts, len(variants))
        return torch.where(skip[None, :, None], before, applied)

    return chosen


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_variants_of_the_last_token_go_without_blocks_of_their_own(family):
    """Each as if the text before it had been read by the whole model, and it alone by the others; to the logits."""
    model = deep(family)
    variants = [(), (2,), (3, 5), (2, 4, 6), (4,), (2, 3, 4, 5, 6)]
    forward = begun(model)
    forward.step(torch.tensor(NEXT)[:, 3:6], n_read=3)
    forward.retract(3, READ)
    chosen, states = each_with_its_own(2, variants), {}

    def through(block, before, applied):
        states[block] = chosen([block], before, applied)
        return states[block]

    with rewritten(model.blocks, through):
        logits = Lab(model, forward, TEXTS, [[0], [0]]).variants(len(variants))
    for place, variant in enumerate(variants):
        parts = [(block, part) for block in variant for part in ("attention", "mlp")]
        for row, ids in enumerate(TEXTS):
            expected = read(model, ids, parts, 1)
            for block in range(model.n_layers):
                torch.testing.assert_close(
                    states[block][row, place], expected.states[block, "mlp"][0], atol=2e-4, rtol=2e-4
                )
            if place == len(variants) - 1:
                torch.testing.assert_close(logits[row], expected.logits[0], atol=2e-4, rtol=2e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", tiny_names())
def test_two_halves_are_the_block(family):
    """Of each family that splits: where nothing is left out, the states are those of the whole model."""
    model = tiny(family)
    whole = family in {"gptj", "cohere2", "gpt_neox", "gemma4_text"} or parts_of(model) is None
    assert splits(model) != whole
    if whole or branching_fault(model):
        return
    ids, able, states = torch.tensor([PROMPTS[0]]), candidates(model), {}

    def through(block, part, before, applied):
        states[block, part] = applied
        return applied

    expected = {}
    handles = [
        model.blocks[block].register_forward_hook(
            lambda _, __, out, block=block: expected.__setitem__(block, out if isinstance(out, Tensor) else out[0])
        )
        for block in able
    ]
    logits = model.hf(input_ids=ids, use_cache=False).logits
    for handle in handles:
        handle.remove()
    with split(model, able, through):
        found = model.hf(input_ids=ids, use_cache=False).logits
    for block in able:
        torch.testing.assert_close(states[block, "mlp"], expected[block], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found, logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_variants_of_the_last_token_go_without_halves_of_their_own(family):
    model = deep(family)
    variants = [
        (),
        ((2, "attention"),),
        ((3, "mlp"),),
        ((2, "mlp"), (4, "attention")),
        ((5, "attention"), (5, "mlp")),
        tuple(product(range(2, 7), ("attention", "mlp"))),
    ]
    forward = begun(model)
    forward.step(torch.tensor(NEXT)[:, 3:6], n_read=3)
    forward.retract(3, READ)
    chosen, states = each_with_its_own(2, variants), {}

    def through(block, part, before, applied):
        states[block, part] = chosen([(block, part)], before, applied)
        return states[block, part]

    with split(model, range(2, 7), through):
        logits = Lab(model, forward, TEXTS, [[0], [0]]).variants(len(variants))
    assert sorted(states) == sorted(product(range(2, 7), ("attention", "mlp")))
    for place, variant in enumerate(variants):
        for row, ids in enumerate(TEXTS):
            expected = read(model, ids, variant, 1)
            for part, of_part in states.items():
                torch.testing.assert_close(of_part[row, place], expected.states[part][0], atol=2e-4, rtol=2e-4)
            if place == len(variants) - 1:
                torch.testing.assert_close(logits[row], expected.logits[0], atol=2e-4, rtol=2e-4)


@torch.no_grad()
@pytest.mark.parametrize("weights", [(1, 1), (3, 2), (1, 4)])
def test_a_programme_over_halves_of_blocks(weights):
    """Attention modules and MLPs of a real model by weights of their own, for every budget that can be reached."""
    model, most = deep("llama"), 9
    of_part = dict(zip(("attention", "mlp"), weights, strict=True))
    modules = [
        Module((block, part), of_part[part] if 0 < block < 7 else None)
        for block, part in product(range(8), ("attention", "mlp"))
    ]

    def states(left_out, index):
        return [read(model, ids, left_out, 1).states[modules[index].name][0] for ids in TEXTS]

    expected = plain_programme(modules, most, states)
    assert expected.margin > 1e-5, "otherwise rounding could decide"
    forward = begun(model)
    forward.step(torch.tensor(NEXT)[:, 3:6], n_read=3)
    forward.retract(3, READ)
    programme = Programme(most)

    def through(block, part, before, applied):
        wanted = torch.stack([read(model, ids, (), 1).states[block, part][0] for ids in TEXTS])
        return programme.choose((block, part), of_part[part], wanted, before, applied)

    with split(model, range(1, 7), through):
        Lab(model, forward, TEXTS, [[0], [0]]).variants(most + 1)
    assert any(len(left_out) > 2 for left_out in expected.left_out.values())
    for weight, left_out in expected.left_out.items():
        assert set(programme.left_out(weight)) == left_out


@torch.no_grad()
@pytest.mark.parametrize("family", ["gptj", "gemma4_text"])
def test_blocks_that_do_not_split_are_left_out_whole(family):
    model = tiny(family)
    drafter = Drafter(model, ll.KnapSpec(context_window=2, length=2, search_interval=1000, skip_ratio=1.0))
    search = drafter.search
    for name, seconds in (("attention", 1.0), ("mlp", 1.0)):
        search._seconds[name].extend([seconds] * 8)
    search._passes[1].extend([10.0] * 8)
    search._passes[3].extend([10.0] * 8)
    search.watching = lambda n_tokens: StateSearch.watching(search, n_tokens)
    options = GenerateOptions(max_new_tokens=6, eos_token_id=-1, generation_config=False)
    decode_drafted(model, [PROMPTS[0]], ll.Last(), options, 0, drafter)
    assert search.n_proposals == 1
    assert search.skips.is_of_blocks
