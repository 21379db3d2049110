"""The fused readout, run by Triton's interpreter, against whole float64 logits and scipy."""

import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerlens import lens
from tests.lens.test_reading import make, whole

pytest.importorskip("triton", reason="pip install triton")
from layerlens.lens import kernels, tiled
from layerlens.lens.kernels import Shape, read_fused
from tests.thorough import thorough

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def on_device(states, unembed):
    unembed = type(unembed)(
        unembed.tail,
        unembed.weight.to(DEVICE),
        None if unembed.bias is None else unembed.bias.to(DEVICE),
        unembed.scale,
        unembed.softcap,
    )
    return states.to(DEVICE), unembed


def agrees(reading, log_probs, tolerance):
    np.testing.assert_allclose(
        reading.entropy.cpu(), scipy.stats.entropy(np.exp(log_probs), axis=1), atol=tolerance, rtol=tolerance
    )
    top = np.take_along_axis(log_probs, reading.top_token_id.cpu().numpy()[:, None], 1)[:, 0]
    np.testing.assert_allclose(top, log_probs.max(1), atol=10 * tolerance)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.sampled_from([1, 2, 15, 17, 40, 129, 150]),
    d=st.sampled_from([1, 8, 64, 65, 130]),
    vocab=st.sampled_from([2, 127, 128, 129, 300, 1027]),
    bias=st.booleans(),
    scale=st.sampled_from([1.0, 0.3, -2.0]),
    softcap=st.sampled_from([None, 1.5, 30.0]),
    spread=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_any_shape_agrees_with_scipy_on_whole_float64_logits(seed, rows, d, vocab, bias, scale, softcap, spread):
    states, unembed = make(seed, rows, d, vocab, bias=bias, scale=scale, softcap=softcap, spread=spread)
    chosen = torch.randint(0, vocab, (rows, 3), generator=torch.Generator().manual_seed(seed))
    log_probs = whole(states, unembed)
    given_states, head = on_device(states, unembed)
    logits = torch.full((rows, vocab), math.nan, device=DEVICE)
    reading = read_fused(given_states, head, chosen.to(DEVICE), logits=logits)
    agrees(reading, log_probs, 3e-5)
    np.testing.assert_allclose(
        reading.log_probs.cpu(), np.take_along_axis(log_probs, chosen.numpy(), 1), atol=3e-4, rtol=3e-5
    )
    np.testing.assert_allclose(torch.log_softmax(logits, 1).cpu(), log_probs, atol=3e-4, rtol=3e-5)


@pytest.mark.parametrize("n_live", [0, 1, 16, 17, 40])
def test_rows_after_the_live_ones_cost_nothing(n_live):
    states, unembed = make(3, 40, 24, 300)
    log_probs = whole(states, unembed)
    states, unembed = on_device(states, unembed)
    logits = torch.full((40, 300), math.nan, device=DEVICE)
    count = torch.tensor(n_live, device=DEVICE)
    reading = read_fused(states, unembed, logits=logits, n_live=count, shape=Shape(16, 64, 32, 4, 2))
    expected = scipy.stats.entropy(np.exp(log_probs), axis=1)
    np.testing.assert_allclose(reading.entropy[:n_live].cpu(), expected[:n_live], atol=3e-5)
    assert reading.entropy[n_live:].isnan().all()
    n_read = math.ceil(n_live / 16) * 16  # whole tiles of rows
    assert logits.isnan().all(1).tolist() == [row >= n_read for row in range(40)]


COMPILES = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from layerlens.lens import kernels, tiled

POINTERS = {"states": "*bf16", "weight": "*bf16", "bias": "*bf16", "sums": "*fp32", "tops": "*i64", "logits": "*fp32",
            "n_live": "*i64", "scale": "fp32", "softcap": "fp32", "lowest": "fp32"}
names = kernels._read.arg_names
signature = {name: "constexpr" if name.isupper() else POINTERS.get(name, "i32") for name in names}
ALIGNED = {*POINTERS, "width", "state_stride", "weight_stride", "logits_stride", "words_per_part"} - {
    "scale", "softcap", "lowest"}
aligned = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if name in ALIGNED}
for version, shapes in {80: ("_FEW", "_SOME", "_MANY"), 90: ("_FEW", "_SOME", "_MANY", "_WIDE")}.items():
    for name in shapes:
        shape = getattr(kernels, name)
        for on in (False, True) if name == shapes[-1] else (True,):
            constants = dict.fromkeys(("HAS_BIAS", "HAS_CAP", "WRITES", "COUNTS"), on)
            constants |= {"WIDENS": False, "ROWS": shape.rows, "WORDS": shape.words, "WIDTH": shape.width}
            done = triton.compile(
                ASTSource(kernels._read, signature, constants, aligned),
                target=GPUTarget("cuda", version, 32),
                options={"num_warps": shape.warps, "num_stages": shape.stages},
            )
            units = "mma.sync" if version == 80 or shape.rows < 64 else "wgmma.mma_async"
            print(name, done.metadata.shared, units in done.asm["ptx"])
"""


@thorough
def test_it_compiles_for_gpus_whose_memory_it_fits(tmp_path):
    """Where there is none too: for Ampere and Hopper, on tensor cores, within what a program may take."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)  # what was compiled before is not taken from there
    done = subprocess.run([sys.executable, "-c", COMPILES], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 9
    for name, shared, on_tensor_cores in lines:
        assert int(shared) <= (kernels.SHARED_WHEN_WIDE if name == "_WIDE" else kernels.LEAST_SHARED), name
        assert on_tensor_cores == "True", name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_added_up_in_float32(dtype):
    states, unembed = make(2, 6, 64, 2000, spread=0.5, dtype=dtype)
    reading = read_fused(*on_device(states, unembed))
    assert reading.entropy.dtype == torch.float32
    agrees(reading, whole(states, unembed), 5e-5)


def test_of_equal_maxima_the_first_is_the_top_token():
    for places in [(3, 900), (640, 641), (127, 128), (0, 999)]:
        weight = torch.zeros(1000, 1)
        weight[list(places)] = 5.0
        reading = read_fused(*on_device(torch.ones(2, 1), lens_head(weight)))
        assert reading.top_token_id.tolist() == [places[0]] * 2


def lens_head(weight):
    from layerlens.models import Unembed

    return Unembed([], weight)


def test_where_triton_is_missing_the_tiled_readout_is_used(monkeypatch):
    states, unembed = on_device(*make(8, 5, 16, 200))
    assert tiled.fused(unembed) is None, "where it was not asked for"
    unembed = replace(unembed, fused=True)
    assert tiled.fused(unembed) is unembed
    monkeypatch.setattr(tiled, "find_spec", lambda name: None)
    assert tiled.fused(unembed) is None
    monkeypatch.setattr(kernels, "read_fused", None)
    assert lens.read(states, unembed).entropy.isfinite().all()


def test_states_and_weights_as_they_lie():
    """Rows apart from each other; a weight that lies by columns is left to the tiled readout."""
    states, unembed = make(9, 6, 16, 200)
    log_probs = whole(states, unembed)
    apart = torch.stack([states, torch.zeros_like(states)], dim=2)[:, :, 0]
    wide = type(unembed)(unembed.tail, torch.cat([unembed.weight, unembed.weight], dim=1)[:, :16])
    agrees(read_fused(*on_device(apart, unembed)), log_probs, 3e-5)
    agrees(read_fused(*on_device(apart, wide)), log_probs, 3e-5)
    every_second = torch.randn(400)[::2]
    biased = type(unembed)(unembed.tail, unembed.weight, every_second)
    agrees(read_fused(*on_device(apart, biased)), whole(states, biased), 3e-5)
    by_columns = type(unembed)(unembed.tail, unembed.weight.t().contiguous().t(), fused=True)
    assert tiled.fused(by_columns) is None
    agrees(lens.read(states, by_columns), log_probs, 3e-5)


def test_of_no_state_there_is_nothing_to_read():
    states, unembed = on_device(*make(9, 1, 16, 200))
    reading = read_fused(states[:0], unembed, torch.zeros(0, 2, dtype=torch.long, device=DEVICE))
    assert [part.shape for part in reading[:4]] == [(0,), (0,), (0,), (0, 2)]


def test_it_is_the_tiled_readout_and_the_same_twice():
    states, unembed = on_device(*make(7, 33, 48, 5000, softcap=20.0))
    once, again, tiled = read_fused(states, unembed), read_fused(states, unembed), lens.read(states, unembed)
    for one, two in zip(once[:3], again[:3], strict=True):
        assert torch.equal(one, two)
    for one, two in zip(once[:3], tiled[:3], strict=True):
        torch.testing.assert_close(one, two, atol=2e-5, rtol=2e-5)


@pytest.mark.filterwarnings("ignore:invalid value")  # of the interpreter
def test_a_banned_word_and_a_state_that_is_not_a_number():
    states, unembed = make(6, 4, 8, 300, bias=True)
    unembed.bias[[0, 5, 299]] = -math.inf
    states[2, 1] = math.nan
    reading = read_fused(*on_device(states, unembed))
    with np.errstate(invalid="ignore"):
        expected = scipy.stats.entropy(np.exp(whole(states, unembed)), axis=1)
    kept = [0, 1, 3]
    np.testing.assert_allclose(reading.entropy[kept].cpu(), expected[kept], atol=3e-5)
    assert reading.entropy.isnan().tolist() == [False, False, True, False]
