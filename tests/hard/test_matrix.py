"""Every family through every backend, with and without a lens: the numbers of transformers, or a sentence that says no.

What transformers gives is compared with float64 in `tests/invariants/test_laws.py`, for every family and with a lens.
"""

from collections import Counter

import numpy as np
import pytest

import layerlens as ll
from layerlens.models import tiny_model, tiny_names, tiny_tokenizer
from tests.conftest import tiny
from tests.hard.doors import IS_HARD
from tests.invariants.laws import TEXTS, TOLERANCE, drawn_lens, hook_count, runs_agree

pytest.importorskip("nnsight")
pytest.importorskip("transformer_lens")
pytestmark = pytest.mark.filterwarnings("ignore::layerlens.errors.Notice")

FEW = ("llama", "gemma3_text", "mamba", "granitemoe")
LEAST = {"nnsight": 30, "nnsight-simulated": 30, "transformer-lens": 20}
"""So many families at least go through a backend."""


@pytest.mark.parametrize("backend", LEAST)
def test_every_family_through_a_backend(backend, run_of):
    ends = Counter()
    for family in tiny_names() if IS_HARD else FEW:
        try:
            model = ll.load(tiny_model(family), tokenizer=tiny_tokenizer(), backend=backend)
        except ll.ModelError as error:
            ends["refused"] += 1
            print(f"{family}: {error}")
            continue
        plain = tiny(family)
        lenses = [None] if "nnsight" in backend else [None, drawn_lens(plain)[0]]  # nnsight takes no lens, and says so
        try:
            for lens in lenses:
                given = {"max_new_tokens": 0, "batch_size": 3, "lens": lens}
                one, other = (run_of(m, TEXTS, **given) for m in (plain, model))
                runs_agree(one, other, TOLERANCE.get(family, 1e-4))
                np.testing.assert_array_equal(one.layers("top_token_id"), other.layers("top_token_id"))
            assert hook_count(plain.hf) == 0
            ends["agrees"] += 1
        except Exception as error:
            raise AssertionError(f"{family} through {backend}") from error
    print(f"{backend}: {dict(ends)}")
    if IS_HARD:
        assert ends["agrees"] >= LEAST[backend]
    else:
        assert ends["agrees"] >= 1


STRATEGIES = {
    "last": ll.Last(),
    "valley": ll.Valley(window=2),
    "fixed": ll.Fixed(1),
    "dola": ll.DoLa(),
    "sled": ll.SLED(),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_family_through_every_door(name, run_of):
    """The same tokens from generate, from a trace, and from the loop of transformers."""
    ends, strategy = Counter(), STRATEGIES[name]
    for family in tiny_names() if IS_HARD else FEW:
        model = tiny(family)
        try:
            made = ll.generate(model, "What is this?", strategy=strategy, max_new_tokens=6)
        except ll.LayerlensError as error:
            ends["refused"] += 1
            print(f"{family}: {error}")
            continue
        run = run_of(model, ["What is this?"], strategy=strategy, max_new_tokens=6)
        assert run.prompts["output"].tolist() == [made.text], family
        ids = model.tokenizer("What is this?", return_tensors="pt")
        with ll.decoding(model, strategy):
            whole = model.hf.generate(ids.input_ids, max_new_tokens=6, do_sample=False)
        generated = whole[0, ids.input_ids.shape[1] :].tolist()
        assert model.tokenizer.decode(generated, skip_special_tokens=True) == made.text, family
        ends["agrees"] += 1
    print(f"{name}: {dict(ends)}")
    assert ends["agrees"] > ends["refused"]
