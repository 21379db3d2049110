"""Compiled loops against float64, at the sizes where they change course; and what they leave to torch."""

import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from layerlens.lens import sums
from layerlens.lens.tiled import read
from layerlens.models.unembed import Unembed
from layerlens.native import compiled, count_above, loops, mixed_sums, products, row_sums

pytestmark = pytest.mark.skipif(compiled.processor() is None, reason="no loops are compiled for this processor")


def drawn(rows, words, d, dtype=torch.float32):
    torch.manual_seed(rows * words + d)
    return torch.randn(rows, d), (torch.randn(words, d) * 0.3).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("words", [64, 65, 97, 129, 1000])
@pytest.mark.parametrize("d", [16, 48, 576])
def test_products_are_those_of_float64(dtype, words, d):
    for rows in (1, 2, 9, 10, 11, 20, 33, 80):
        states, weight = drawn(rows, words, d, dtype)
        exact = states.double() @ weight.double().t()
        torch.testing.assert_close(products(states, weight).double(), exact, rtol=0, atol=2e-6 * math.sqrt(d))


def test_a_product_depends_neither_on_other_states_nor_on_the_threads():
    states, weight = drawn(33, 1003, 64)
    together = products(states, weight)
    alone = torch.cat([products(state, weight) for state in states.split(1)])
    assert torch.equal(together, alone)
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 3, 7):
            torch.set_num_threads(n)
            assert torch.equal(together, products(states, weight))
    finally:
        torch.set_num_threads(threads)


def test_a_state_without_a_number_spoils_its_own_row_and_a_weight_its_own_word():
    states, weight = drawn(12, 70, 32)
    expected = products(states, weight)
    states[3, 5], weight[69, 31] = math.nan, math.inf
    found = products(states, weight)
    rows = [row for row in range(12) if row != 3]
    assert found[3].isnan().all()
    assert torch.equal(found[rows][:, :69], expected[rows][:, :69])
    assert found[rows][:, 69].isinf().all()


@pytest.mark.parametrize(
    ("states", "weight"),
    [
        (torch.randn(0, 16), torch.randn(64, 16)),
        (torch.randn(81, 16), torch.randn(64, 16)),
        (torch.randn(2, 24), torch.randn(64, 24)),
        (torch.randn(2, 16), torch.randn(63, 16)),
        (torch.randn(2, 16), torch.randn(16, 64).t()),
        (torch.randn(2, 16), torch.randn(128, 16)[::2]),
        (torch.randn(16, 2).t(), torch.randn(64, 16)),
        (torch.randn(2, 16).double(), torch.randn(64, 16)),
        (torch.randn(2, 16), torch.randn(64, 16).double()),
        (torch.randn(2, 16, device="meta"), torch.randn(64, 16, device="meta")),
        (torch.randn(2, 16), nn.Parameter(torch.randn(64, 16))),
        (torch.randn(2, 16), torch._neg_view(torch.randn(64, 16))),
        (torch._neg_view(torch.randn(2, 16)), torch.randn(64, 16)),
        (torch.randn(2, 32), torch.randn(64, 16)),
        (torch.randn(2, 16), torch.randn(64, 16).to_sparse()),
    ],
    ids=[
        "no state",
        "too many states",
        "d",
        "few words",
        "transposed",
        "strided",
        "states transposed",
        "states in float64",
        "weight in float64",
        "no values",
        "a gradient",
        "a weight of the other sign",
        "states of the other sign",
        "another width",
        "a sparse weight",
    ],
)
def test_products_that_are_left_to_torch(states, weight):
    assert products(states, weight) is None


def test_a_watched_product_is_left_to_torch():
    states, weight = drawn(2, 64, 16)
    with FlopCounterMode(display=False):
        assert products(states, weight) is None
    with FakeTensorMode() as mode:
        assert products(mode.from_tensor(states), mode.from_tensor(weight)) is None
    with torch.no_grad():
        assert products(states, nn.Parameter(weight)) is not None


def test_products_under_vmap_are_left_to_torch():
    states, weight = drawn(4, 64, 16)

    def rows(state):
        found = products(state.unsqueeze(0), weight)
        assert found is None
        return state @ weight.t()

    torch.testing.assert_close(torch.vmap(rows)(states), states @ weight.t())


def exact_sums(logits):
    """In float64, of the words that are not banned."""
    rows = []
    for row in logits.double().tolist():
        m = max(row)
        exps = [(math.exp(z - m), z - m) for z in row if z > -math.inf]
        rows.append((m, math.fsum(e for e, _ in exps), math.fsum(e * x for e, x in exps)))
    return torch.tensor(rows, dtype=torch.float64).t()


@pytest.mark.parametrize("words", [1, 7, 8, 15, 16, 17, 100, 1024, 1031])
def test_what_is_counted_is_what_torch_counts(words):
    """Rows that stand apart in memory, bounds that are among the logits, infinite ones and NaN."""
    logits = torch.randn(33, words + 3, generator=torch.Generator().manual_seed(words))[:, 1 : words + 1]
    logits[4, words // 2] = math.nan
    logits[5, 0] = -math.inf
    bounds = logits[:, words // 3].nan_to_num().clone()
    bounds[:4] = torch.tensor([-9.0, 9.0, math.inf, -math.inf])
    bounds[6] = math.nan
    above = torch.full((33,), 5)
    assert count_above(logits, bounds, above)
    assert torch.equal(above, 5 + (logits > bounds.unsqueeze(1)).sum(1))
    if words > 100:
        assert 0 < above[10] - 5 < words


def test_what_is_not_counted_is_left_to_torch():
    logits, bounds, above = torch.randn(3, 40), torch.zeros(3), torch.zeros(3, dtype=torch.long)
    assert not count_above(logits.double(), bounds, above)
    assert not count_above(logits.t(), bounds, above)
    assert not count_above(logits, bounds.double(), above)
    assert not count_above(logits, bounds, above.int())
    assert not count_above(logits, bounds[:2], above)
    assert not count_above(logits[:0], bounds[:0], above[:0])
    assert not above.any()


@pytest.mark.parametrize("words", [1, 15, 16, 17, 1024, 1040, 1041, 3007])
def test_row_sums_are_those_of_float64(words):
    torch.manual_seed(words)
    logits = (torch.randn(7, words + 5) * 8)[:, :words]  # rows lie further apart than they are long
    logits[1] -= 1000  # an offset changes nothing
    logits[2, : words // 2] = -math.inf
    logits[3] *= 20  # far below the maximum exponentials are nothing
    greatest, top = torch.full((7,), -math.inf), torch.zeros(7, dtype=torch.long)
    found = row_sums(logits, greatest, top, 100)
    torch.testing.assert_close(found.double(), exact_sums(logits), rtol=2e-6, atol=1e-6)
    assert torch.equal(greatest, logits.amax(1))
    assert torch.equal(top, logits.argmax(1) + 100)
    assert torch.equal(found, row_sums(logits))


def test_the_exponential_is_within_float32s_rounding():
    pairs = torch.zeros(20_000, 2)
    pairs[:, 1] = torch.linspace(-86.9, 0, 20_000)
    _, _, moment = row_sums(pairs)  # of which one word has none
    x = pairs[:-1, 1].double()
    ratio = moment[:-1].double() / (x * x.exp())
    assert (ratio - 1).abs().max() < 2e-7


@pytest.mark.parametrize("words", [16, 48, 1024, 4096])
def test_mixed_sums_are_those_of_float64(words):
    """Of rows that stand apart in memory, with banned words and words that neither distribution has."""
    drawn_from = torch.Generator().manual_seed(words)
    logits, others = (torch.randn(9, words + 16, generator=drawn_from) * 6 for _ in range(2))
    logits[:3] *= 20
    logits[4, : words // 2] = others[4, : words // 4] = others[5, 3] = -math.inf
    logits, others = logits[:, :words], others[:, :words]
    normalizers = logits.logsumexp(1)
    probs = torch.empty(9, words + 16)[:, :words].copy_(others.softmax(1))
    both = (logits.double() - normalizers.double().unsqueeze(1)).exp() + probs.double()
    found = mixed_sums(logits, normalizers, probs)
    torch.testing.assert_close(found.double(), torch.special.xlogy(both, both).sum(1), rtol=2e-6, atol=5e-6)
    assert torch.equal(found[:4], mixed_sums(logits[:4], normalizers[:4], probs[:4]))


def test_the_logarithm_is_within_float32s_rounding():
    """Of probabilities that are alone in their rows, beside zeros that count as 1e-37."""
    ends = torch.logspace(-28, 0, 20_000, dtype=torch.float64).float()
    probs = torch.zeros(20_000, 16)
    probs[:, 5] = ends
    found = mixed_sums(torch.full((20_000, 16), -math.inf), torch.zeros(20_000), probs).double()
    x = ends.double()
    away = found - torch.special.xlogy(x, x)
    assert (away.abs() / (x * x.log().abs().clamp_min(1))).max() < 3e-7


def test_mixed_sums_of_rows_without_a_number():
    logits, normalizers, probs = torch.zeros(4, 16), torch.full((4,), math.log(16)), torch.full((4, 16), 1 / 16)
    logits[0, 3], normalizers[1], probs[2, 9] = math.nan, math.nan, math.nan
    found = mixed_sums(logits, normalizers, probs)
    assert found[:3].isnan().all()
    torch.testing.assert_close(found[3], torch.tensor(2 * math.log(1 / 8)))


def test_mixed_sums_that_are_left_to_torch():
    logits, normalizers, probs = torch.zeros(4, 32), torch.zeros(4), torch.zeros(4, 32)
    assert mixed_sums(logits, normalizers, probs) is not None
    for others in (
        (logits[:, :30], normalizers, probs[:, :30]),
        (logits, normalizers.double(), probs),
        (logits, normalizers[:2], probs),
        (logits, normalizers, probs.double()),
        (logits, normalizers, torch.zeros(4, 48)[:, :32]),
        (logits, normalizers, torch.zeros(32, 4).t()),
        (logits[:0], normalizers[:0], probs[:0]),
    ):
        assert mixed_sums(*others) is None


def test_the_first_of_equal_words_is_on_top_and_only_where_it_is_higher():
    logits = torch.zeros(3, 40)
    logits[:, [7, 20, 33]] = 2.0
    logits[2, 39] = 2.5
    greatest, top = torch.tensor([1.0, 2.0, -math.inf]), torch.tensor([-1, -2, -3])
    row_sums(logits, greatest, top, 1000)
    assert top.tolist() == [1007, -2, 1039]
    assert greatest.tolist() == [2.0, 2.0, 2.5]


@pytest.mark.parametrize(
    ("greatest", "top"),
    [
        (torch.zeros(6)[::2], torch.zeros(3, dtype=torch.long)),
        (torch.zeros(3), torch.zeros(6, dtype=torch.long)[::2]),
        (torch.zeros(3).double(), torch.zeros(3, dtype=torch.long)),
        (torch.zeros(3), torch.zeros(3, dtype=torch.int32)),
        (torch.zeros(4), torch.zeros(4, dtype=torch.long)),
    ],
)
def test_sums_whose_top_word_cannot_be_written_are_left_to_torch(greatest, top):
    before = greatest.clone(), top.clone()
    assert row_sums(torch.randn(3, 40), greatest, top) is None
    assert torch.equal(greatest, before[0])
    assert torch.equal(top, before[1])


def test_rows_without_a_number():
    logits = torch.zeros(5, 33)
    logits[1, 4], logits[2, 32], logits[3] = math.nan, math.inf, -math.inf
    found = row_sums(logits)
    assert found[:, [1, 2]].isnan().all()
    assert found[:, 3].tolist() == [-math.inf, 0.0, 0.0]
    torch.testing.assert_close(found[:, [0, 4]], torch.tensor([[0.0, 0.0], [33.0, 33.0], [0.0, 0.0]]))


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("rows", [3, 100])
@torch.no_grad()
def test_a_reading_is_the_same_by_torch_alone(monkeypatch, softcap, rows):
    states, weight = drawn(rows, 1501, 32)
    unembed = Unembed([nn.LayerNorm(32)], weight, torch.randn(1501), softcap=softcap)
    chosen = torch.randint(0, 1501, (rows, 4))
    ours = read(states, unembed, chosen, tile=(64, 500))
    logits = unembed.logits(states)
    entropy = sums.Sums.of_rows(logits).entropy(1501)
    monkeypatch.setattr(loops, "processor", lambda: None)
    torchs = read(states, unembed, chosen, tile=(64, 500))
    for one, other in zip(ours, torchs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(entropy, torchs.entropy, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(logits, unembed.logits(states), rtol=1e-5, atol=1e-5)


HELD = """
import torch
from layerlens.native import compiled, products, row_sums
torch.manual_seed(0)
states, weight = torch.randn(23, 48), torch.randn(101, 48)
this = compiled.processor()
found = products(states, weight)
if this is None:
    assert found is None and row_sums(states) is None
    print(0)
else:
    torch.testing.assert_close(found.double(), states.double() @ weight.double().t(), rtol=0, atol=1e-5)
    m, total, moment = row_sums(found)
    torch.testing.assert_close((m + total.log()).double(), found.double().logsumexp(1), rtol=1e-6, atol=0)
    entropy = torch.distributions.Categorical(logits=found.double()).entropy()
    torch.testing.assert_close((total.log() - moment / total).double(), entropy, rtol=1e-5, atol=1e-6)
    print(this.lanes)
"""


@pytest.mark.parametrize(("capability", "lanes"), [("avx2", 8), ("default", 0)])
def test_what_holds_torch_to_an_instruction_set_holds_the_loops(capability, lanes):
    held = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run([sys.executable, "-c", HELD], env=held, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, str(lanes)), done.stderr


UNUSABLE = """
import sys, types, warnings
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("llvmlite."):
            raise OSError("cannot open shared object file")
sys.meta_path.insert(0, Broken())
import torch
from layerlens.errors import Notice
from layerlens.native import products, row_sums
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    assert products(torch.ones(3, 32), torch.ones(99, 32)) is None
    assert row_sums(torch.ones(3, 32)) is None
assert [one.category for one in told] == [Notice], told
assert "cannot open shared object file" in str(told[0].message)
"""
# PR_SET_MDWE: memory that was written can no longer be run, as systemd's MemoryDenyWriteExecute has it
DENIED = """
import ctypes, torch
denied = ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0
from layerlens.native import products
found = products(torch.ones(3, 32), torch.ones(99, 32))
assert (found is None) == denied
"""
FORKED = """
import os, torch
from layerlens.native import compiled, products
compiled._LOCK.acquire()  # as while another thread compiles
import threading
threading.Timer(1.0, compiled._LOCK.release).start()
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    os._exit(0 if products(torch.ones(3, 32), torch.ones(99, 32)) is not None else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.parametrize("script", [UNUSABLE, DENIED, FORKED], ids=["a broken compiler", "denied", "forked"])
def test_what_stands_in_the_way_of_a_compiler(script):
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
