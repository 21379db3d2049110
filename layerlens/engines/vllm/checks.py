"""Which engines are refused, and why. vLLM asks before it starts one."""

from typing import Any

from layerlens.engines.vllm.lenses import lens_of
from layerlens.engines.vllm.options import KEY, engine_options
from layerlens.engines.vllm.serving import here, is_on, is_tied
from layerlens.errors import OptionError


def check(vllm_config: Any) -> None:
    """Refuse an engine that layerlens cannot serve; otherwise requests of this process are checked by its options.

    Raises:
        OptionError: with the reason.
    """
    if not is_on(vllm_config):
        here.options = here.layers = None
        return
    parallel = vllm_config.parallel_config
    refusals = [
        (
            vllm_config.speculative_config is not None,
            "speculative_config",
            "a draft's tokens have several rows in a step, and drafting changes which states come out",
        ),
        (
            parallel.pipeline_parallel_size > 1,
            "pipeline_parallel_size",
            "the last rank has only its own layers; use tensor_parallel_size",
        ),
        (vllm_config.lora_config is not None, "enable_lora", "an adapter's head takes one state of each request"),
        (
            bool(getattr(parallel, "enable_batch_sharded_sampling", False)),
            "enable_batch_sharded_sampling",
            "each rank then sees a part of the requests",
        ),
        (
            getattr(parallel, "prefill_context_parallel_size", 1) > 1,
            "prefill_context_parallel_size",
            "it reorders the states of a prompt, and this was not tried",
        ),
        (vllm_config.model_config.runner_type == "pooling", "runner", "a pooling model emits no tokens"),
    ]
    config = vllm_config.model_config
    options = engine_options(vllm_config.additional_config[KEY])
    for refused, option, reason in refusals:
        if refused:
            raise OptionError(
                f"layerlens does not work with {option}: {reason}",
                f"leave out {option}, or start an engine without {KEY}",
                option=option,
            )
    if options.traces is not None:
        _run_the_model_in_each_step(vllm_config.compilation_config)
    lens_of(options, vllm_config)
    tied = is_tied(config)
    here.layers, here.tied = options.layers(config.get_total_num_hidden_layers(), tied), tied
    here.options = options
    here.n_engines = parallel.data_parallel_size


def _run_the_model_in_each_step(compilation: Any) -> None:
    """Choose piecewise CUDA graphs where no mode was given; OptionError where whole passes are to be replayed."""
    from vllm.config import CUDAGraphMode

    mode = compilation.cudagraph_mode
    if mode is None:
        compilation.cudagraph_mode = CUDAGraphMode.PIECEWISE
    elif mode.has_full_cudagraphs():
        raise OptionError(
            f"cudagraph_mode {mode.name} replays whole passes, in which states cannot be traced",
            "give PIECEWISE or NONE, or leave out traces",
            option="traces",
            given=mode.name,
        )
