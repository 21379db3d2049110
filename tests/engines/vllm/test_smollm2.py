"""A real model, whose texts are real: eager, and compiled as vLLM does it."""

import pytest

import layerlens as ll
from tests.engines.vllm.engines import answers, assert_same, engine, ours

TEXTS = (
    "The capital of France is",
    "2+2=",
    "Once upon a time there was a",
    "Water boils at",
    "The three primary colours are",
    "def add(a, b):",
    "In 1969, the first",
    "A triangle has",
)
STRATEGIES = (
    ({}, ll.Valley(window=10)),
    ({"window": 2}, ll.Valley(window=2)),
    ({"strategy": "dola-low", "per": "row"}, ll.DoLa(candidates="low", per="row")),
    ({"strategy": "sled"}, ll.SLED()),
    ({"strategy": "last"}, ll.Last()),
)


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "compiled"])
def test_tokens_layers_and_entropies_are_those_of_our_own_loop(eager, folder_of):
    folder = folder_of("smollm2")
    tokenizer = ll.load(folder).tokenizer
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    with engine(folder, {"strategy": "valley", "window": 10, "also": ["sled"]}, enforce_eager=eager) as llm:
        found = [answers(llm, prompts, [extra] * len(prompts), 20) for extra, _ in STRATEGIES]
        mixed = answers(llm, prompts[:5], [extra for extra, _ in STRATEGIES], 20)
    for row, ((_, strategy), one) in enumerate(zip(STRATEGIES, found, strict=True)):
        wanted = ours(folder, prompts, strategy, 20)
        assert_same(one, wanted, range(len(prompts)), tolerance=1e-3)
        assert_same(mixed, wanted, [row], tolerance=1e-3)
    assert found[0].token_ids != found[-1].token_ids
