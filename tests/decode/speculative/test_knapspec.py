"""The set and the length that KnapSpec chooses where latencies are known, against every pair it can choose from."""

import random
from fractions import Fraction
from itertools import pairwise, product
from statistics import median
from typing import NamedTuple

import pytest
import torch

import layerlens as ll
from layerlens.decode.forward import Forward
from layerlens.decode.prompts import pad
from layerlens.decode.speculative.knapspec import expected_tokens, integer_weights
from layerlens.decode.speculative.lab import Lab
from layerlens.decode.speculative.skipset import SkipSet
from tests.decode.speculative.passes import agreement, deep, one_round, read
from tests.decode.speculative.test_programme import Module, plain_programme

LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24)
WINDOW = 8


@pytest.mark.parametrize("length", [0, 1, 2, 7, 24])
def test_expected_tokens_is_the_closed_form(length):
    """Of a geometric series; d + 1 where every drafted token holds, and 1 where none does."""
    for agreed in (0.0, 0.1, 0.5, 0.93, 0.999):
        closed = (1 - Fraction(agreed) ** (length + 1)) / (1 - Fraction(agreed))
        assert expected_tokens(agreed, length) == pytest.approx(float(closed), rel=1e-12)
    assert expected_tokens(1.0, length) == length + 1
    assert expected_tokens(0.0, length) == 1


@pytest.mark.parametrize("length", [1, 4, 12])
def test_expected_tokens_is_what_a_draw_gives(length):
    """Drafted tokens hold with the same probability, up to the first that does not; the model's own comes on top."""
    draw = random.Random(length)
    counts = []
    for _ in range(20_000):
        n = 0
        while n < length and draw.random() < 0.7:
            n += 1
        counts.append(n + 1)
    assert expected_tokens(0.7, length) == pytest.approx(sum(counts) / len(counts), rel=0.03)


@pytest.mark.parametrize("n_blocks", [1, 2, 6, 14, 22, 30, 78, 200])
def test_weights_are_in_the_ratio_of_the_latencies(n_blocks):
    """Each is the nearest whole number of forty-eighths of all candidates' latency, but at least 1."""
    for attention, mlp in ((1, 1), (1, 2), (2, 1), (1, 9), (9, 1), (1, 400), (7, 5)):
        for scale in (1.0, 3e-5):
            found = integer_weights(attention * scale, mlp * scale, n_blocks)
            assert set(found) == {"attention", "mlp"}
            share = {"attention": Fraction(attention, attention + mlp), "mlp": Fraction(mlp, attention + mlp)}
            for name, weight in found.items():
                assert type(weight) is int
                assert weight >= 1
                exact = share[name] * 48 / n_blocks
                assert abs(weight - exact) <= Fraction(1, 2) + Fraction(1, 10**9) or (weight == 1 and exact < 1)
    if n_blocks == 6:
        assert integer_weights(1e-3, 3e-3, 6) == {"attention": 2, "mlp": 6}


def test_forty_eight_units_are_shared_out():
    for n_blocks in (1, 2, 4, 6, 8, 12):
        weights = integer_weights(1.0, 1.0, n_blocks)
        assert n_blocks * sum(weights.values()) == 48
    assert integer_weights(1.0, 1.0, 1000) == {"attention": 1, "mlp": 1}


PROMPTS = [[17, 200, 45, 3, 99, 30, 120, 64, 33], [250, 31, 77, 5]]
DRAW = random.Random(7)
NEXT = [[DRAW.randrange(3, 259) for _ in range(12)] for _ in PROMPTS]
TEXTS = [prompt + following for prompt, following in zip(PROMPTS, NEXT, strict=True)]


class Times(NamedTuple):
    """Seconds of an attention module and of an MLP, and of passes by how many tokens they read."""

    attention: tuple[float, ...]
    mlp: tuple[float, ...]
    passes: dict[int, tuple[float, ...]]


@torch.no_grad()
def verified(model, search, n_known=12):
    """The texts after their last token was read alone; what the search can try on them."""
    forward = Forward(model, *pad(PROMPTS, 0, left=True), 24, static=False, rewinds=True, n_spare=search.n_back)
    forward.prompts()
    ids = torch.tensor(NEXT)
    forward.step(ids[:, :-1], n_read=11)
    forward.rewind(0)
    with search.watching(1):
        forward.step(ids[:, -1:])
    forward.rewind(0)
    chosen = [read(model, text, (), n_known).logits.argmax(1).tolist() for text in TEXTS]
    return Lab(model, forward, TEXTS, chosen)


@torch.no_grad()
def searched(model, policy, times, n_known=12):
    """What a search chooses that measured these times."""
    search = policy.search(model)
    lab = verified(model, search, n_known)
    assert {name: len(measured) for name, measured in search._seconds.items()} == {"attention": 1, "mlp": 1}
    assert list(search._passes) == [1]
    for name in ("attention", "mlp"):
        search._seconds[name].clear()
        search._seconds[name].extend(getattr(times, name))
    search._passes.clear()
    for n_tokens, seconds in times.passes.items():
        search._passes[n_tokens].extend(seconds)
    search.after(one_round([[0], [0]], SkipSet()), lab)
    return search


class Chosen(NamedTuple):
    """A pair and what is expected of it."""

    speed: float
    left_out: frozenset
    length: int


def pass_seconds(times, n_tokens):
    """By a line through the median of one token; its slope is the median of those to other widths, never below 0."""
    one = median(times.passes[1])
    slopes = [(median(seconds) - one) / (width - 1) for width, seconds in times.passes.items() if width > 1]
    slope = median(slopes) if slopes else 0.1 * one
    return one + (n_tokens - 1) * max(slope, 0)


def states_of(model):
    """Gives the states of the last token of each text after a half of a block, without other halves."""

    def states(left_out, index):
        half = (index // 2, ("attention", "mlp")[index % 2])
        return [read(model, ids, left_out, 1).states[half][0] for ids in TEXTS]

    return states


def plain_pairs(model, times, skip_ratio, longest):
    """Every pair that can be chosen, from a programme in plain Python and passes of the whole texts."""
    able, names = range(1, 7), ("attention", "mlp")
    seconds = {name: median(getattr(times, name)) for name in names}
    weights = integer_weights(seconds["attention"], seconds["mlp"], len(able))
    most = int(skip_ratio * sum(weights.values()) * len(able))
    modules = [Module((b, name), weights[name] if b in able else None) for b, name in product(range(8), names)]
    best = plain_programme(modules, most, states_of(model))
    assert best.margin > 1e-6, "otherwise rounding could decide"
    budgets = {max(one for one in best.left_out if one <= most * quarter // 4) for quarter in (1, 2, 3, 4)}
    pairs = []
    for left_out in (best.left_out[budget] for budget in budgets if budget):
        agreed = agreement(model, TEXTS, left_out, WINDOW)
        draft = median(times.passes[1]) - sum(seconds[name] for _, name in left_out)
        for length in LENGTHS:
            if length <= longest:
                tokens = sum(agreed**power for power in range(length + 1))
                took = length * draft + pass_seconds(times, length + 1)
                pairs.append(Chosen(tokens * median(times.passes[1]) / took, left_out, length))
    return sorted(pairs, reverse=True, key=lambda one: one.speed)


CASES = {
    # the modules of six blocks are nearly all that a pass takes, and one token more costs little
    "mostly modules": Times((0.08,), (0.08,), {1: (1.0,), 4: (1.03,)}),
    "attention is dear": Times((0.12,), (0.03,), {1: (1.0,), 4: (1.03,)}),
    "MLPs are dear": Times((0.02,), (0.13,), {1: (1.0,), 4: (1.03,)}),
    "several tokens are dear": Times((0.08,), (0.08,), {1: (1.0,), 4: (2.2,)}),
    "several tokens were never measured": Times((0.08,), (0.08,), {1: (1.0,)}),
    "several tokens seemed to be cheaper": Times((0.08,), (0.08,), {1: (1.0,), 2: (0.7,), 3: (0.9,)}),
    "many widths": Times((0.08,), (0.08,), {1: (1.0,), 2: (1.5,), 5: (1.2,), 26: (1.25,), 3: (1.0,)}),
    "medians": Times((0.01, 0.08, 5.0), (0.08, 0.0801, 7.0), {1: (0.2, 1.0, 30.0), 4: (1.03, 0.1, 9.0)}),
    "other things take long": Times((0.01,), (0.012,), {1: (1.0,), 4: (1.03,)}),
}


@pytest.mark.parametrize("skip_ratio", [0.3, 0.9])
@pytest.mark.parametrize("case", CASES)
def test_no_other_pair_promises_more(case, skip_ratio):
    model, times = deep("llama", damped=0.06), CASES[case]
    pairs = plain_pairs(model, times, skip_ratio, 25)
    assert len({pair.left_out for pair in pairs}) > 2
    search = searched(model, ll.KnapSpec(skip_ratio=skip_ratio, context_window=WINDOW), times)
    best = pairs[0]
    if best.speed <= 1:
        assert (search.expected, search.skips, search.length) == (1, SkipSet(), None)
        return
    assert search.expected == pytest.approx(best.speed, rel=1e-9)
    found = {(block, "attention") for block in search.skips.attention} | {(block, "mlp") for block in search.skips.mlp}
    assert found == best.left_out
    assert search.length == best.length
    assert (search.n_proposals, search.is_over) == (1, False)


def test_what_is_chosen_hangs_on_the_times():
    """Otherwise the cases above would show less than they seem to."""
    model = deep("llama", damped=0.06)
    best = [plain_pairs(model, times, ratio, 25)[0] for times in CASES.values() for ratio in (0.3, 0.9)]
    assert len({pair.length for pair in best if pair.speed > 1}) > 3
    assert len({pair.left_out for pair in best if pair.speed > 1}) > 3
    assert any(pair.speed <= 1 for pair in best)


def test_a_length_is_at_most_that_of_the_policy():
    model, times = deep("llama", damped=0.06), CASES["mostly modules"]
    found = {}
    for longest in (1, 2, 5, 1000):
        search = searched(model, ll.KnapSpec(skip_ratio=0.3, context_window=WINDOW, length=longest), times)
        best = plain_pairs(model, times, 0.3, longest)[0]
        assert (search.length, search.expected) == (best.length, pytest.approx(best.speed, rel=1e-9))
        found[longest] = search.length
    assert found == {1: 1, 2: 2, 5: 4, 1000: 24}


def test_nothing_is_left_out_where_nothing_may_be():
    search = searched(deep("llama"), ll.KnapSpec(skip_ratio=0, context_window=WINDOW), CASES["mostly modules"])
    assert (search.expected, search.skips, search.length, search.n_proposals) == (1, SkipSet(), None, 1)


def test_a_set_is_chosen_once_enough_tokens_were_verified():
    """Until then it stays due."""
    model, times = deep("llama", damped=0.06), CASES["mostly modules"]
    for n_known, n_chosen in ((7, 0), (8, 1)):
        search = searched(model, ll.KnapSpec(context_window=WINDOW), times, n_known)
        assert search.n_proposals == n_chosen
        assert bool(search.skips) == bool(n_chosen)
        assert search.is_due == (n_chosen == 0)


@torch.no_grad()
def test_set_and_length_are_chosen_again_after_an_interval():
    model = deep("llama", damped=0.06)
    search = ll.KnapSpec(context_window=WINDOW, search_interval=3).search(model)
    lab = verified(model, search)
    counts = []
    for number in range(8):
        if number:
            with search.watching(1), lab._forward.aside(1):
                lab._forward.step(torch.tensor(NEXT)[:, -1:])
        search.after(one_round([[0], [0]], search.skips), lab)
        counts.append(search.n_proposals)
    assert counts == [1, 1, 1, 2, 2, 2, 3, 3]


@torch.no_grad()
def test_times_are_measured():
    """Of passes of each width; of attention and MLP in passes of one token alone, for one of the candidates each."""
    model = deep("llama")
    search = ll.KnapSpec().search(model)
    ids = torch.tensor([[5, 9, 33, 60]])
    for n_tokens in (1, 4, 1, 2, 1):
        with search.watching(n_tokens):
            model.hf(input_ids=ids[:, :n_tokens], use_cache=False)
    assert {width: len(times) for width, times in search._passes.items()} == {1: 3, 4: 1, 2: 1}
    assert {name: len(times) for name, times in search._seconds.items()} == {"attention": 3, "mlp": 3}
    for number, whole in enumerate(search._passes[1]):
        parts = sum(search._seconds[name][number] for name in ("attention", "mlp"))
        assert 0 < 6 * parts < whole, "six of eight blocks are a part of the pass"
    for _ in range(20):
        with search.watching(1):
            model.hf(input_ids=ids[:, :1], use_cache=False)
    assert {len(times) for times in (*search._seconds.values(), search._passes[1])} == {8}, "the latest"


def test_budgets_are_shares_of_the_candidates_latency():
    """A quarter, a half, three quarters and all of the most that may be left out, by weights in whole numbers."""
    model, times = deep("llama", damped=0.06), Times((0.02,), (0.06,), {1: (1.0,), 4: (1.03,)})
    pairs = plain_pairs(model, times, 0.8, 1)
    weights = {"attention": 2, "mlp": 6}
    totals = sorted(sum(weights[name] for _, name in pair.left_out) for pair in pairs)
    assert totals == [8, 18, 28, 38], "38 of the 48 units are at most 80 %; weights are even"
    assert all(fewer < more for fewer, more in pairwise(totals))
    search = searched(model, ll.KnapSpec(skip_ratio=0.8, context_window=WINDOW, length=1), times)
    total = len(search.skips.attention) * 2 + len(search.skips.mlp) * 6
    assert total in totals
    assert search.skips.found["weights"] == weights
