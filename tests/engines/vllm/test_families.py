"""Token for token what our own loop gives, for families whose states come out in each of the three ways."""

import pytest

import layerlens as ll
from tests.engines.vllm.engines import answers, assert_same, engine, ours, ragged

HANDED_OUT = ("llama", "qwen3", "qwen3_moe", "gpt_oss", "granite", "phi3")
BY_TAPS = ("gemma", "gemma2", "gemma3_text", "mixtral", "qwen2_moe", "cohere", "glm4", "gpt2", "opt")
BY_TRANSFORMERS = ("olmo2", "smollm3")

PROMPTS = ragged(8)
MIX = (
    ({}, ll.Valley(window=4)),
    ({"strategy": "last"}, ll.Last()),
    ({"window": 2}, ll.Valley(window=2)),
    ({"strategy": "sled"}, ll.SLED()),
    ({"strategy": "last-1"}, ll.Fixed(1)),
    ({"p": 0.0}, ll.Last()),
    ({"criterion": "margin"}, ll.Valley(window=4, criterion="margin")),
    ({"strategy": "dola", "per": "row"}, ll.DoLa(per="row")),
)


@pytest.mark.parametrize("family", [*HANDED_OUT, *BY_TAPS])
def test_tokens_layers_and_entropies_are_those_of_our_own_loop(family, folder_of):
    folder = folder_of(family)
    with engine(folder, {"strategy": "valley", "window": 4, "also": ["sled"]}) as llm:
        by_engine = answers(llm, PROMPTS, [{}] * len(PROMPTS))
        mixed = answers(llm, PROMPTS, [extra for extra, _ in MIX])
    assert_same(by_engine, ours(folder, PROMPTS, ll.Valley(window=4)), range(len(PROMPTS)))
    for row, (_, strategy) in enumerate(MIX):
        assert_same(mixed, ours(folder, PROMPTS, strategy), [row])


@pytest.mark.parametrize("family", BY_TRANSFORMERS)
def test_models_that_vllm_runs_through_transformers(family, folder_of):
    """All but strategies that read the embeddings, which vLLM's adapter does not hand out."""
    folder = folder_of(family)
    mix = [(extra, strategy) for extra, strategy in MIX if not isinstance(strategy, ll.SLED | ll.DoLa)]
    mix += [({"strategy": "dola", "candidates": [1, 2], "per": "row"}, ll.DoLa(candidates=(1, 2), per="row"))]
    # before the engine, which puts operators of its own into classes of transformers
    wanted = ours(folder, PROMPTS, ll.Valley(window=4))
    wanted_mixed = [ours(folder, PROMPTS, strategy) for _, strategy in mix]
    with engine(folder, {"strategy": "valley", "window": 4}) as llm:
        by_engine = answers(llm, PROMPTS, [{}] * len(PROMPTS))
        mixed = answers(llm, PROMPTS[: len(mix)], [extra for extra, _ in mix])
    assert_same(by_engine, wanted, range(len(PROMPTS)))
    for row, decoded in enumerate(wanted_mixed):
        assert_same(mixed, decoded, [row])
