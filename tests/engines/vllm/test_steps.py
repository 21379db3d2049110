"""What vLLM does with requests changes nothing: prompts in parts, preemption, cached prefixes, other requests."""

import pytest

import layerlens as ll
from tests.engines.vllm.engines import answers, assert_same, engine, ours, ragged

VALLEY = {"strategy": "valley", "window": 4}
PROMPTS = ragged(24)


@pytest.fixture(scope="module")
def wanted(folder_of):
    return ours(folder_of("qwen3"), PROMPTS, ll.Valley(window=4))


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"max_num_batched_tokens": 24, "max_num_seqs": 16}, id="prompts in parts"),
        pytest.param({"num_gpu_blocks_override": 5, "block_size": 32, "disable_log_stats": False}, id="preempted"),
        pytest.param({"enable_prefix_caching": True, "max_num_seqs": 16}, id="cached prefixes"),
    ],
)
def test_answers_and_records_are_complete_and_the_same(given, folder_of, wanted):
    with engine(folder_of("qwen3"), VALLEY, **given) as llm:
        first = answers(llm, PROMPTS, [{}] * len(PROMPTS))
        again = answers(llm, PROMPTS, [{}] * len(PROMPTS))
        if "num_gpu_blocks_override" in given:
            assert preemptions(llm) > 0
    assert_same(first, wanted, range(len(PROMPTS)))
    assert_same(again, wanted, range(len(PROMPTS)))


def preemptions(llm) -> int:
    from vllm.v1.metrics.reader import Counter

    return sum(one.value for one in llm.get_metrics() if isinstance(one, Counter) and "preempt" in one.name)


def test_draws_do_not_depend_on_the_batch(folder_of):
    prompts = PROMPTS[:8]
    with engine(folder_of("qwen3"), VALLEY) as llm:
        whole = answers(llm, prompts, [{"p": 0.5, "seed": 3}] * 8)
        half = answers(llm, prompts[4:], [{"p": 0.5, "seed": 3}] * 4)
        other = answers(llm, prompts, [{"p": 0.5, "seed": 4}] * 8)
        by_sampling = answers(llm, prompts, [{"p": 0.5}] * 8, seed=3)
        always = answers(llm, prompts, [{}] * 8)
    assert half.token_ids == whole.token_ids[4:]
    assert [one["selected_layer"] for one in half.records] == [one["selected_layer"] for one in whole.records[4:]]
    assert by_sampling.token_ids == whole.token_ids
    assert whole.token_ids not in (other.token_ids, always.token_ids)
    layers = [layer for one in whole.records for layer in one["selected_layer"]]
    valleys = [layer for one in whole.records for layer in one["valley_layer"]]
    moved = [chosen for chosen, valley in zip(layers, valleys, strict=True) if valley < 4]
    assert len(moved) > 40
    assert 0.25 < sum(layer < 4 for layer in moved) / len(moved) < 0.75


def test_without_our_options_and_without_the_plugin_at_work_everything_is_vllms(folder_of):
    folder, prompts = folder_of("qwen3"), PROMPTS[:8]
    wanted = ours(folder, prompts, ll.Last())
    with engine(folder, None) as llm:
        off = answers(llm, prompts, [None] * 8)
        logprobs = prompt_logprobs(llm, prompts)
        model = llm.llm_engine.model_executor.driver_worker.worker.model_runner.model
        assert type(model).__module__ == "vllm.model_executor.models.qwen3"
        assert "_layerlens" not in vars(model)
        with pytest.raises(validation_error(), match="started without layerlens"):
            answers(llm, prompts[:1], [{}])
    assert off.token_ids == wanted.outputs
    with engine(folder, VALLEY) as llm:
        assert prompt_logprobs(llm, prompts) == logprobs
        last = answers(llm, prompts, [{"strategy": "last"}] * 8)
        no_record = answers(llm, prompts, [None] * 8)
    assert last.token_ids == off.token_ids
    assert no_record.token_ids != off.token_ids
    assert no_record.records == [None] * 8


def validation_error() -> type[Exception]:
    """What vLLM's server answers with status 400."""
    from vllm.exceptions import VLLMValidationError

    return VLLMValidationError


def prompt_logprobs(llm, prompts):
    from vllm import SamplingParams

    given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    out = llm.generate(given, SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=3), use_tqdm=False)
    return [
        [None if at is None else {token: one.logprob for token, one in at.items()} for at in one.prompt_logprobs]
        for one in out
    ]


def test_a_bad_option_is_refused_and_the_engine_goes_on(folder_of):
    prompts = PROMPTS[:2]
    with engine(folder_of("qwen3"), {"strategy": "valley", "window": 3}) as llm:
        good = answers(llm, prompts, [{}] * 2)
        for extra, said in (
            ({"strategy": "middle"}, "strategy 'middle' is unknown"),
            ({"window": 4}, "window 4 is deeper than the candidates"),
            ({"strategy": "sled"}, "reads layers 0, 1"),
            ({"windw": 2}, "did you mean window"),
        ):
            with pytest.raises(validation_error(), match=said):
                answers(llm, prompts[:1], [extra])
        with pytest.raises(validation_error(), match="would name 2 answers"):
            answers(llm, prompts[:1], [{}], n=2, temperature=1)
        assert answers(llm, prompts, [{}] * 2) == good
