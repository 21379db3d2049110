"""A vocabulary in parts, one for each of several threads that stand for ranks, against the whole."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import layerlens as ll
from layerlens.decode.readouts import Readouts
from layerlens.engines.vllm.head import StockHead, before_head, behind_norm
from layerlens.engines.vllm.shards import ShardReadouts, Shards

D, N_LAYERS = 6, 5


class Ranks:
    """What each of several ranks answers; they exchange tensors as vLLM's would."""

    def __init__(self, n_ranks):
        self._barrier = threading.Barrier(n_ranks, timeout=60)
        self._given = [None] * n_ranks
        self.n_exchanged = 0

    def __call__(self, work):
        with ThreadPoolExecutor(len(self._given)) as pool:
            return list(
                pool.map(lambda rank: work(rank, lambda values: self._gather(rank, values)), range(len(self._given)))
            )

    def _gather(self, rank, values):
        assert values.dtype == torch.float32, "ranks on CPUs with AVX-512 exchange no integers"
        self._given[rank] = values
        self._barrier.wait()
        every = torch.stack(self._given)
        self.n_exchanged += values.numel()
        self._barrier.wait()
        return every


def made(n_vocab, width, rank, gather, weight):
    """The part of a rank, whose columns beyond the vocabulary hold something that must not count."""
    own = torch.full((width, weight.shape[1]), 50.0)
    part = weight[rank * width : (rank + 1) * width]
    own[: len(part)] = part
    return Shards(lambda normed: normed @ own.t(), gather, n_vocab, rank, width)


CASES = [(40, 20, 2), (37, 20, 2), (10, 4, 4), (9, 8, 4)]


@pytest.mark.parametrize(("n_vocab", "width", "n_ranks"), CASES)
def test_entropy_first_choice_and_whole_rows(n_vocab, width, n_ranks):
    """Also where ranks have padding or nothing, equal logits in two ranks, a NaN, and a banned token."""
    draws = torch.Generator().manual_seed(n_vocab)
    # whole numbers, whose sums are exact in any order
    weight = torch.randint(-4, 5, (n_vocab, D), generator=draws).float()
    normed = torch.randint(-2, 3, (7, D), generator=draws).float() / 4
    weight[-1] = weight[1]
    normed[0] = 20 * weight[1]
    normed[1] = 0.0
    normed[2] = torch.nan
    whole = normed @ weight.t()

    def work(rank, gather):
        shards = made(n_vocab, width, rank, gather, weight)
        logits = shards.logits_of(normed)
        return shards.entropy(logits), shards.first_choice(logits), shards.whole(logits)

    wanted = torch.distributions.Categorical(logits=whole.double()[3:]).entropy()
    for entropy, first, rows in Ranks(n_ranks)(work):
        torch.testing.assert_close(rows, whole, equal_nan=True)
        assert first.tolist() == whole.argmax(1).tolist()
        assert entropy[2].isnan()
        torch.testing.assert_close(entropy[3:].double(), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "strategy",
    [
        ll.Valley(window=4),
        ll.Valley(window=4, scan="lazy"),
        ll.Valley(window=4, entropy_floor=0.3),
        ll.Valley(window=3, p=0.5, shift=-1),
        ll.Fixed(2, p=0.5),
    ],
)
@pytest.mark.parametrize(("n_vocab", "width", "n_ranks"), CASES)
@pytest.mark.parametrize("may_branch", [True, False])
def test_strategies_choose_as_from_the_whole(strategy, n_vocab, width, n_ranks, may_branch):
    draws = torch.Generator().manual_seed(3 * n_vocab)
    weight = torch.randn(n_vocab, D, generator=draws)
    raw = {layer: torch.randn(9, D, generator=draws) * (1 + layer) / 2 for layer in range(1, N_LAYERS + 1)}
    uniform = torch.rand(9, generator=draws)
    states = {layer: before_head(one, torch.nn.Identity()) for layer, one in raw.items() if layer < N_LAYERS}
    states[N_LAYERS] = behind_norm(raw[N_LAYERS])
    device = torch.device("cpu")
    whole_head = StockHead(lambda normed: normed @ weight.t(), n_vocab, device)
    wanted = strategy.choose(Readouts(whole_head, states, N_LAYERS, uniform, may_branch=may_branch))
    ranks = Ranks(n_ranks)

    def work(rank, gather):
        shards = made(n_vocab, width, rank, gather, weight)
        head = StockHead(shards.logits_of, width, device)
        choice = strategy.choose(ShardReadouts(shards, head, states, N_LAYERS, uniform, may_branch=may_branch))
        exchanged = ranks.n_exchanged
        return choice, shards.whole(choice.logits), exchanged

    assert strategy.by_shards
    for choice, logits, _ in ranks(work):
        torch.testing.assert_close(logits, wanted.logits)
        assert choice.selected_layer.tolist() == wanted.selected_layer.tolist()
        assert choice.last_token_id.tolist() == wanted.last_token_id.tolist()
        if wanted.values is not None:
            torch.testing.assert_close(choice.values, wanted.values, equal_nan=True, atol=1e-5, rtol=0)
    assert len(set(wanted.selected_layer.tolist())) > 1


def test_ranks_exchange_a_few_numbers_of_each_state():
    """Three sums of each candidate and two numbers of the last layer; logits of the chosen layer alone."""
    n_rows, window, width = 9, 4, 1000
    draws = torch.Generator().manual_seed(0)
    weight = torch.randn(2 * width, D, generator=draws)
    states = {
        layer: before_head(torch.randn(n_rows, D, generator=draws), torch.nn.Identity())
        for layer in range(1, N_LAYERS + 1)
    }
    ranks = Ranks(2)

    def work(rank, gather):
        shards = made(2 * width, width, rank, gather, weight)
        head = StockHead(shards.logits_of, width, torch.device("cpu"))
        ll.Valley(window=window).choose(ShardReadouts(shards, head, states, N_LAYERS, torch.zeros(n_rows)))

    ranks(work)
    assert ranks.n_exchanged == 2 * n_rows * (3 * window + 2)


@pytest.mark.parametrize("strategy", [ll.Valley(window=3, criterion="margin"), ll.SLED(), ll.DoLa(), ll.Last()])
def test_other_strategies_get_whole_rows(strategy):
    assert not strategy.by_shards


def test_a_subclass_that_chooses_in_its_own_way_gets_whole_rows():
    class Own(ll.Valley):
        def choose(self, readouts):
            return super().choose(readouts)

    assert not Own(window=3).by_shards
