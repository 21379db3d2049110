"""Which request each row of a step belongs to. vLLM has two model runners, and both load this class by one entry
point."""

from dataclasses import dataclass
from typing import Any

from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import LogitsProcessor as ProcessorV1
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as ProcessorV2

from layerlens.engines.vllm.options import RequestOptions, own_options, refuse_absent_layers, request_options
from layerlens.engines.vllm.serving import Row, Serving, here, is_on
from layerlens.errors import LayerlensError


@dataclass(frozen=True)
class Live:
    """A request in the batch of Model Runner V1."""

    options: RequestOptions
    output: list[int]
    """Its tokens so far, which the runner itself appends to."""


class Rows(ProcessorV1, ProcessorV2):  # type: ignore[misc]
    """Leaves logits as they are. It checks the options of each request, and tells V1's requests to the model."""

    def __init__(self, vllm_config: Any, *of_runner: Any) -> None:
        self._is_on = is_on(vllm_config)
        # the other runner gives one argument, and tells its requests by the model's state
        here.is_told |= self._is_on and len(of_runner) == 2
        self._live: dict[int, Live] = {}

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """ValueError for options that no request can have; vLLM answers with status 400."""
        extra = sampling_params.extra_args
        try:
            if not own_options(extra):
                return
            engine = here.options
            if engine is None:
                raise ValueError(
                    "this engine was started without layerlens; start it with --additional-config "
                    '\'{"layerlens": {"strategy": "valley"}}\', or leave the options of layerlens out'
                )
            options = request_options(extra, engine, sampling_params.seed)
            if here.layers is not None:
                refuse_absent_layers(options.strategy, here.layers, here.tied)
            if options.id is not None and sampling_params.n > 1:
                raise ValueError(f"id {options.id!r} would name {sampling_params.n} answers; give n=1 with an id")
        except LayerlensError as error:
            raise ValueError(f"layerlens: {error}") from error

    # Model Runner V1

    def is_argmax_invariant(self) -> bool:
        """Whether the most probable token stays; logits are not changed."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """Called once before each forward pass."""
        if not self._is_on:
            return
        assert here.serving is not None, "the model is made before the first step"
        process_dict_updates(self._live, batch_update, self._started)
        rows = [self._live[index] for index in range(len(self._live))]
        here.serving.expect([Row(one.options, len(one.output)) for one in rows])

    def _started(self, params: SamplingParams, prompt: list[int] | None, output: list[int]) -> Live:
        assert here.serving is not None
        return Live(here.serving.options_of(params), output)

    # Model Runner V2, whose requests come by the model's state: see `watching`

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Whether logits of the request are changed here."""
        return False

    def apply(self, logits: Any, *of_step: Any) -> Any:
        """The logits as they are, in either runner."""
        return logits


def watching(stock: type, serving: Serving) -> type:
    """A model state of Model Runner V2 that tells the model which request each row of a step belongs to."""

    class Watching(stock):  # type: ignore[misc]
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            here.is_told = True
            self._of_slot: dict[int, tuple[RequestOptions, int]] = {}

        def add_request(self, req_index: int, new_req_data: Any) -> None:
            super().add_request(req_index, new_req_data)
            options = serving.options_of(new_req_data.sampling_params)
            self._of_slot[req_index] = options, len(new_req_data.prompt_token_ids)

        def prepare_inputs(self, input_batch: Any, req_states: Any) -> Any:
            done = input_batch.num_computed_tokens_np + input_batch.num_scheduled_tokens
            slots = input_batch.idx_mapping_np[: input_batch.num_reqs].tolist()
            rows = []
            for slot, n_read in zip(slots, done[: input_batch.num_reqs].tolist(), strict=True):
                options, n_prompt = self._of_slot[slot]
                rows.append(Row(options, n_read - n_prompt))
            serving.expect(rows)
            return super().prepare_inputs(input_batch, req_states)

    Watching.__name__ = Watching.__qualname__ = stock.__name__
    return Watching
