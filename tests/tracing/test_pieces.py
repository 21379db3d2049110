"""Long texts that go through a model in pieces: the numbers of one pass."""

from contextlib import contextmanager

import numpy as np
import pytest

import layerlens as ll
from layerlens.models import tiny_model, tiny_names, tiny_tokenizer
from layerlens.tracing import passes
from tests.conftest import tiny
from tests.invariants.laws import runs_agree
from tests.thorough import combined

TEXTS = ["Hello there, you", "a", "What is this, then? No more"]


@contextmanager
def lengths_of_passes(model):
    """Of the streams that enter the first block, where a hook is the model's own affair."""
    seen = []

    def note(block, args, kwargs):
        stream = args[0] if args else kwargs["hidden_states"]
        seen.append(stream.shape[1])

    handle = model.blocks[0].register_forward_pre_hook(note, with_kwargs=True)
    yield seen
    handle.remove()


@pytest.mark.parametrize(
    ("family", "options"), combined(tiny_names(), [{"max_new_tokens": 0, "kl": True}, {"mode": "replay"}], n=16)
)
def test_pieces_give_the_numbers_of_one_pass(family, options, run_of, monkeypatch):
    """Of attention alone; what carries a state goes through at once, because transformers begins it anew."""
    # one of its own: a model that was used otherwise is checked with short passes, which would be counted
    model = ll.load(tiny_model(family), tokenizer=tiny_tokenizer())
    options = {"max_new_tokens": 5, **options}
    options["batch_size"] = 1 if options["max_new_tokens"] else 3  # some families generate one by one only
    whole = run_of(model, TEXTS, **options)
    monkeypatch.setattr(passes, "_LONGEST_PASS", 4)
    with lengths_of_passes(model) as lengths:
        pieces = run_of(model, TEXTS, **options)
    is_attention = set(model.layer_kinds) <= {"full", "sliding"}
    if options["max_new_tokens"] == 0:
        assert max(lengths) == (4 if is_attention else whole.prompts["n_prompt_tokens"].max())
    runs_agree(whole, pieces, 1e-4)
    if options.get("kl"):
        np.testing.assert_allclose(whole.layers("kl_last_to_layer"), pieces.layers("kl_last_to_layer"), atol=1e-4)


def test_both_sorts_are_among_them():
    kinds = [set(tiny(name).layer_kinds) for name in tiny_names()]
    assert {"sliding", "full"} in kinds
    assert any("linear" in kind for kind in kinds)
