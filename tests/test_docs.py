"""The documentation's code runs as it stands, and names what there is."""

import re
from pathlib import Path

import pytest
import torch

import layerlens as ll
from layerlens.decode import names
from layerlens.decode.criteria import CRITERIA
from tests.conftest import tiny

DECODING = (Path(__file__).resolve().parents[1] / "docs" / "decoding.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", DECODING, re.DOTALL)


def test_a_strategy_of_your_own_works_in_every_door(monkeypatch, run_of):
    """The one that the documentation shows, by its name, in the loop, in a trace and inside transformers' generate."""
    monkeypatch.setattr(names, "_STRATEGIES", dict(names._STRATEGIES))
    model = tiny("llama")
    exec(compile(BLOCKS[1], "decoding.md", "exec"), {"model": model, "__name__": "docs"})
    strategy = ll.named_strategy("mean-of-two")
    found = ll.generate(model, "Hello there", strategy=strategy, max_new_tokens=12)
    ids = model.tokenizer("Hello there", return_tensors="pt").input_ids
    for _ in range(12):  # plainly: two readouts of a full pass
        states = model.hf.model(ids, output_hidden_states=True).hidden_states
        two = [model.hf.lm_head(state) for state in (model.hf.model.norm(states[3][:, -1]), states[4][:, -1])]
        ids = torch.cat([ids, ((two[0] + two[1]) / 2).argmax(1, keepdim=True)], 1)
    assert found.token_ids == ids[0, -12:].tolist()
    assert (found.steps["projections"] == 2).all()
    run = run_of(model, ["Hello there"], strategy=strategy, max_new_tokens=12)
    assert run.positions["next_token_id"].tolist() == found.token_ids
    assert run.manifest["strategy"] == {"name": "mean-of-two"}
    with pytest.raises(ll.OptionError, match="already"):
        ll.register_strategy("mean-of-two", type(strategy))


def test_every_strategy_and_criterion_is_documented():
    for name in (*names.strategy_names(), *CRITERIA):
        assert f"`{name}`" in DECODING or f"`{name}-" in DECODING or name == "fixed", name
    for option in ("min_new_tokens", "repetition_penalty", "stop_strings", "eos_token_id", "entropy_floor"):
        assert f"`{option}`" in DECODING
