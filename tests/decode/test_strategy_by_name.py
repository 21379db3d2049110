"""A strategy by its name gives what the object gives, wherever one is taken."""

import pytest

import layerlens as ll
from tests.refusals import refused

TEXT = "Hello there"


def test_a_text_is_the_same(tiny_llama):
    by_object = ll.generate(tiny_llama, TEXT, strategy=ll.Fixed(1), max_new_tokens=12)
    assert ll.generate(tiny_llama, TEXT, strategy="last-1", max_new_tokens=12).token_ids == by_object.token_ids
    last = ll.generate(tiny_llama, TEXT, max_new_tokens=12)
    assert ll.generate(tiny_llama, TEXT, strategy="last", max_new_tokens=12).token_ids == last.token_ids
    assert by_object.token_ids != last.token_ids, "the two are told apart"


def test_the_drop_in_is_the_same(tiny_llama):
    inputs = tiny_llama.tokenizer(TEXT, return_tensors="pt")
    texts = []
    for strategy in (ll.Fixed(1), "last-1"):
        with ll.decoding(tiny_llama, strategy):
            texts.append(tiny_llama.hf.generate(**inputs, max_new_tokens=12, do_sample=False).tolist())
    assert texts[0] == texts[1]


def test_a_trace_is_the_same_and_its_window_is_the_strategys(tiny_llama, tmp_path):
    few = {"max_new_tokens": 12, "progress": False, "window": 3}
    runs = [
        ll.trace(tiny_llama, [TEXT], out=tmp_path / str(number), strategy=strategy, **few)
        for number, strategy in enumerate((ll.Valley(window=3), "valley"))
    ]
    assert runs[0].tokens.equals(runs[1].tokens)
    assert runs[0].manifest["strategy"] == runs[1].manifest["strategy"]
    assert runs[1].manifest["strategy"]["window"] == 3
    plain = ll.trace(tiny_llama, [TEXT], out=tmp_path / "last", strategy="last-1", **few)
    assert plain.manifest["strategy"] == {"name": "fixed", "offset": 1, "p": 1.0}
    assert plain.manifest["options"]["window"] == 3


@pytest.mark.parametrize("name", ["valey", "Vally"])
def test_a_slip_is_refused_before_anything_is_written(tiny_llama, tmp_path, name):
    with refused(ll.OptionError, "strategy", name, advice="did you mean valley?"):
        ll.trace(tiny_llama, [TEXT], out=tmp_path / "run", strategy=name)
    with refused(ll.OptionError, "strategy", name, advice="did you mean valley?"), ll.decoding(tiny_llama, name):
        pass
    assert not (tmp_path / "run").exists()
