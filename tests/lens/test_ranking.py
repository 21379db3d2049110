"""Ranks, first words and Jensen-Shannon divergences from tiles against float64 logits and scipy, ties included."""

import numpy as np
import pytest
import scipy.spatial.distance
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerlens import lens
from layerlens.lens import divergence
from layerlens.lens.ranking import FirstWords
from tests.lens.test_head import sharded
from tests.lens.test_reading import make, peak_bytes, whole

CLOSE = 2e-4  # of float64 log-probs: words that float32 can take for equal


def with_equal_words(unembed, chance):
    """Some words made copies of others."""
    n_vocab = unembed.n_vocab
    for word in range(n_vocab):
        if chance.random() < 0.3:
            unembed.weight[word] = unembed.weight[chance.randrange(n_vocab)]
    return unembed


HEADS = {
    "seed": st.integers(0, 10**6),
    "rows": st.integers(1, 9),
    "d": st.integers(1, 24),
    "vocab": st.integers(25, 700),
    "bias": st.booleans(),
    "scale": st.sampled_from([1.0, 0.3, -2.0]),
    "softcap": st.sampled_from([None, 1.5, 30.0]),
    "spread": st.sampled_from([0.1, 1.0, 4.0]),
    "tile": st.tuples(st.integers(1, 12), st.sampled_from([17, 64, 100, 512, 1024])),
    "chance": st.randoms(use_true_random=False),
}


@settings(max_examples=80, deadline=None)
@given(**HEADS, k=st.integers(1, 20))
def test_of_any_head(seed, rows, d, vocab, bias, scale, softcap, spread, tile, chance, k):
    states, unembed = make(seed, rows, d, vocab, bias=bias, scale=scale, softcap=softcap, spread=spread)
    with_equal_words(unembed, chance)
    chosen = torch.tensor([[chance.randrange(vocab), chance.randrange(vocab)] for _ in range(rows)])
    reading = lens.read(states, unembed, chosen, n_first=k, tile=tile)
    expected = whole(states, unembed)
    for column in range(2):
        of_chosen = np.take_along_axis(expected, chosen[:, column : column + 1].numpy(), 1)
        np.testing.assert_allclose(reading.log_probs[:, column : column + 1], of_chosen, atol=CLOSE, rtol=CLOSE)
        margin = CLOSE * (1 + np.abs(expected).max())
        least, most = ((expected > of_chosen + by).sum(1) for by in (margin, -margin))
        ranks = reading.ranks[:, column].numpy()
        assert ((least <= ranks) & (ranks <= most)).all()
    best = -np.sort(-expected, axis=1)[:, :k]
    np.testing.assert_allclose(reading.first_log_probs, best, atol=CLOSE, rtol=CLOSE)
    np.testing.assert_allclose(np.take_along_axis(expected, reading.first_ids.numpy(), 1), best, atol=CLOSE, rtol=CLOSE)
    assert all(len(set(row)) == k for row in reading.first_ids.tolist())
    assert torch.equal(reading.first_ids[:, 0], reading.top_token_id)
    plain = lens.read(states, unembed, tile=tile)
    for ours, theirs in zip(reading[:3], plain[:3], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_words_that_are_equal_are_not_above_one_another(softcap):
    """Of 3,000 words 1,000 kinds three times: the rank is three times the number of kinds above."""
    states, unembed = make(3, 40, 96, 1000, softcap=softcap, bias=True)
    three_times = type(unembed)(
        unembed.tail, unembed.weight.repeat(3, 1), unembed.bias.repeat(3), unembed.scale, unembed.softcap
    )
    of_kinds = whole(states, unembed)
    chosen = torch.arange(40).unsqueeze(1) * 71
    mine = np.take_along_axis(of_kinds, chosen.numpy() % 1000, 1)
    clear = np.sort(np.abs(of_kinds - mine), axis=1)[:, 1] > 1e-4  # where no other kind is nearly as likely
    assert clear.sum() > 20
    ranks = lens.read(states, three_times, chosen, tile=(16, 256)).ranks[:, 0].numpy()
    np.testing.assert_array_equal(ranks[clear], 3 * (of_kinds > mine).sum(1)[clear])


def test_a_head_in_shards_ranks_as_the_whole_one():
    states, unembed = make(4, 7, 16, 400)
    chosen = torch.arange(7).unsqueeze(1) * 50
    shards = sharded(unembed, [150, 150, 100])
    ours, theirs = (lens.read(states, head, chosen, n_first=5) for head in (shards, unembed))
    assert torch.equal(ours.ranks, theirs.ranks)
    assert torch.equal(ours.first_ids, theirs.first_ids)


def test_first_words_of_tiles_in_any_order():
    logits = torch.randn(50, 4096, generator=torch.Generator().manual_seed(1))
    expected = logits.topk(12, dim=1)
    for order in (range(4), (3, 0, 2, 1)):
        first = FirstWords(50, 12, logits.device)
        for tile in order:
            part = logits[:, 1024 * tile : 1024 * (tile + 1)]
            first.add(part, part.amax(1), 1024 * tile)
        values, ids = first.result(expected.indices[:, 0], expected.values[:, 0])
        assert torch.equal(values, expected.values)
        assert torch.equal(ids, expected.indices)


def test_of_a_state_that_is_not_a_number():
    states, unembed = make(5, 3, 8, 300)
    states[1] = torch.nan
    reading = lens.read(states, unembed, torch.full((3, 1), 7), n_first=4)
    assert reading.log_probs[1].isnan().all()
    assert reading.first_log_probs[1].isnan().all()
    for fields in (reading.log_probs, reading.first_log_probs):
        assert fields[[0, 2]].isfinite().all()


@settings(max_examples=60, deadline=None)
@given(**HEADS, n_layers=st.integers(1, 4))
def test_jensen_shannon_is_scipys(seed, rows, d, vocab, bias, scale, softcap, spread, tile, chance, n_layers):
    _, unembed = make(seed, 1, d, vocab, bias=bias, scale=scale, softcap=softcap, spread=spread)
    states = [torch.randn(rows, d, generator=torch.Generator().manual_seed(seed + one)) for one in range(n_layers)]
    _, ours = lens.read_with_js(states, unembed, tile=tile)
    probs = [np.exp(whole(one, unembed)) for one in states]
    for layer in range(n_layers):
        theirs = scipy.spatial.distance.jensenshannon(probs[layer], probs[-1], axis=1) ** 2
        np.testing.assert_allclose(ours[layer], theirs, atol=1e-4, rtol=1e-3)
    assert (ours >= 0).all()
    assert (ours <= np.log(2)).all()
    assert (ours[-1] == 0).all()


@pytest.mark.parametrize("loops", [True, False])
def test_readings_beside_a_divergence_are_those_alone(monkeypatch, loops):
    """Also where rows come in several pieces, the last one smaller, and where no loop is compiled."""
    monkeypatch.setattr(divergence, "_CPU_KEPT", (64, 4 * 1003 * 5))  # five rows
    if not loops:
        monkeypatch.setattr(divergence, "mixed_sums", lambda *_: None)
    states, unembed = make(7, 13, 16, 1003, softcap=20.0)
    states[4] = torch.nan
    layers = [states * factor + 0.1 * factor for factor in (0.3, -2.0, 1.0)]
    chosen = torch.arange(13).unsqueeze(1) * 70
    readings, divergences = lens.read_with_js(layers, unembed, chosen, n_first=6)
    for layer, reading in zip(layers, readings, strict=True):
        for ours, alone in zip(reading, lens.read(layer, unembed, chosen, n_first=6), strict=True):
            torch.testing.assert_close(ours, alone, equal_nan=True)
    assert divergences[:, 4].isnan().all()
    rows = [row for row in range(13) if row != 4]
    p, q = (np.exp(whole(layer[rows], unembed)) for layer in (layers[1], layers[2]))
    theirs = scipy.spatial.distance.jensenshannon(p, q, axis=1) ** 2
    assert theirs.max() > 0.1
    np.testing.assert_allclose(divergences[1][rows], theirs, atol=2e-6)


def test_a_divergence_of_no_rows():
    states, unembed = make(7, 3, 16, 90)
    readings, divergences = lens.read_with_js([states[:0], states[:0]], unembed, torch.zeros(0, 1, dtype=torch.long))
    assert [reading.log_probs.shape for reading in readings] == [(0, 1)] * 2
    assert divergences.shape == (2, 0)


def test_a_small_divergence_is_small():
    """Of two layers that differ by a thousandth."""
    states, unembed = make(8, 12, 32, 3000)
    near = states + 1e-3 * torch.randn(12, 32, generator=torch.Generator().manual_seed(2))
    both = [near, states]
    ours = lens.read_with_js(both, unembed)[1][0].numpy()
    theirs = scipy.spatial.distance.jensenshannon(*(np.exp(whole(one, unembed)) for one in both), axis=1) ** 2
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_banned_word_and_a_layer_of_nothing_but_noughts():
    states, unembed = make(6, 4, 8, 300, bias=True)
    unembed.bias[[0, 5, 299]] = -torch.inf
    layers = [torch.zeros_like(states), states]
    ours = lens.read_with_js(layers, unembed, tile=(4, 64))[1][0]
    p, q = (np.exp(whole(one, unembed)) for one in layers)
    np.testing.assert_allclose(ours, scipy.spatial.distance.jensenshannon(p, q, axis=1) ** 2, atol=1e-5)


def test_a_banned_word_is_below_all_that_are_not():
    states, unembed = make(6, 4, 8, 300, bias=True)
    unembed.bias[[0, 5, 299]] = -torch.inf
    reading = lens.read(states, unembed, torch.tensor([[5], [0], [299], [5]]), n_first=3, tile=(4, 64))
    assert reading.ranks[:, 0].tolist() == [297] * 4
    assert (reading.log_probs < -1e20).all()


def test_no_temporary_grows_with_the_vocabulary():
    states, unembed = make(5, 512, 8, 200_000)
    chosen = torch.zeros(512, 1, dtype=torch.long)
    lens.read(states[:1], unembed, chosen[:1], n_first=20)
    work = lambda: lens.read(states, unembed, chosen, n_first=20)  # noqa: E731
    assert 2**20 < peak_bytes(work) < 40 * 2**20
    for vocab in (400_000, 800_000):  # the logits that are kept fill the most that they may
        states, unembed = make(5, 90, 4, vocab)
        work = lambda: lens.read_with_js([states, states], unembed, chosen[:90], n_first=20)  # noqa: B023, E731
        assert 80 * 2**20 < peak_bytes(work) < 145 * 2**20
