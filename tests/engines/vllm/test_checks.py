"""Engines that are refused before they start."""

import pytest

from layerlens.engines.vllm.checks import check
from tests.engines.vllm.engines import written
from tests.refusals import refused


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return written("qwen3", tmp_path_factory.mktemp("qwen3"))


def config(folder, options, **given):
    from vllm.engine.arg_utils import EngineArgs

    arguments = {"dtype": "float32", "max_model_len": 64} | given
    return EngineArgs(folder, additional_config={"layerlens": options}, **arguments).create_engine_config()


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size"),
        ({"enable_lora": True}, "enable_lora"),
        ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}}, "speculative_config"),
        ({"prefill_context_parallel_size": 2}, "prefill_context_parallel_size"),
        ({"enable_batch_sharded_sampling": True}, "enable_batch_sharded_sampling"),
        ({"runner": "pooling"}, "runner"),
    ],
)
def test_an_engine_that_cannot_be_served_is_refused_with_the_reason(folder, given, option):
    with refused(option=option):
        config(folder, {"strategy": "valley"}, **given)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"strategy": "valley", "window": 9}, "window"),
        ({"strategy": "vally"}, "strategy"),
        ({}, "strategy"),
        ({"strategy": "valley", "window": 3, "lens": "linear:nothing.safetensors"}, "lens"),
    ],
)
def test_options_that_the_model_cannot_have_are_refused(folder, options, option):
    with refused(option=option):
        config(folder, options)


def test_a_good_engine_passes(folder):
    check(config(folder, {"strategy": "valley", "window": 3}))
