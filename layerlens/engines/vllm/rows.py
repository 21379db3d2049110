"""Which request each row of a step belongs to. vLLM has two model runners, and both load this class by one entry
point."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm.forward_context import get_forward_context
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import LogitsProcessor as ProcessorV1
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as ProcessorV2

from layerlens.engines.vllm.options import RequestOptions, own_options, refuse_absent_layers, request_options
from layerlens.engines.vllm.serving import Row, Serving, here, is_on
from layerlens.engines.vllm.traces import Span
from layerlens.errors import LayerlensError


@dataclass(frozen=True, eq=False)
class Live:
    """A request in the batch of Model Runner V1."""

    options: RequestOptions
    n_prompt: int
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
            if options.id is not None and here.n_engines > 1:
                raise ValueError(
                    f"id {options.id!r} asks for records, which {here.n_engines} engines with data parallelism cannot "
                    "give out; start one server for each of them, or leave the id out"
                )
            if options.trace == "all":
                sampling_params.skip_reading_prefix_cache = True  # states that are not computed cannot be traced
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
        before = set(self._live.values())
        process_dict_updates(self._live, batch_update, self._started)
        rows = [self._live[index] for index in range(len(self._live))]
        for one in rows:
            if one not in before and not one.output:  # with tokens, it goes on after a preemption
                here.serving.begins(one.options.id, {other.options.id for other in rows if other is not one})
        here.serving.expect([Row(one.options, len(one.output)) for one in rows], lambda: _spans(rows))

    def _started(self, params: SamplingParams, prompt: list[int] | None, output: list[int]) -> Live:
        assert here.serving is not None
        return Live(here.serving.options_of(params), len(prompt or ()), output)

    # Model Runner V2, whose requests come by the model's state: see `watching`

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Whether logits of the request are changed here."""
        return False

    def apply(self, logits: Any, *of_step: Any) -> Any:
        """The logits as they are, in either runner."""
        return logits


def _spans(rows: Sequence[Live]) -> list[Span]:
    """The states of the step that runs now in Model Runner V1; RuntimeError where its attention does not tell them."""
    metadata = get_forward_context().attn_metadata
    told = metadata.values() if isinstance(metadata, dict) else ()
    one = next((one for one in told if hasattr(one, "query_start_loc") and hasattr(one, "seq_lens")), None)
    if one is None:
        raise RuntimeError(
            "this attention backend does not say which states belong to which request, and nothing can "
            "be traced; use Model Runner V2, or another attention backend"
        )
    starts = one.query_start_loc[: len(rows) + 1].tolist()
    ends = one.seq_lens[: len(rows)].tolist()
    return [
        Span(live.options, live.n_prompt, start, stop, end - (stop - start))
        for live, start, stop, end in zip(rows, starts, starts[1:], ends, strict=False)
    ]


def watching(stock: type, serving: Serving) -> type:
    """A model state of Model Runner V2 that tells the model which request each row of a step belongs to."""

    class Watching(stock):  # type: ignore[misc]
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            here.is_told = True
            self._of_slot: dict[int, tuple[RequestOptions, int]] = {}
            self._slot_of: dict[str, int] = {}

        def add_request(self, req_index: int, new_req_data: Any) -> None:
            super().add_request(req_index, new_req_data)
            options = serving.options_of(new_req_data.sampling_params)
            n_prompt = len(new_req_data.prompt_token_ids or ())
            if len(new_req_data.prefill_token_ids or ()) <= n_prompt:  # else it goes on after a preemption
                serving.begins(options.id, {one.id for one, _ in self._of_slot.values()})
            self._of_slot[req_index] = options, n_prompt
            self._slot_of[new_req_data.req_id] = req_index

        def remove_request(self, req_id: str) -> None:
            super().remove_request(req_id)
            slot = self._slot_of.pop(req_id, None)
            if slot is not None:
                self._of_slot.pop(slot, None)

        def prepare_inputs(self, input_batch: Any, req_states: Any) -> Any:
            n = input_batch.num_reqs
            slots = input_batch.idx_mapping_np[:n].tolist()
            begun = input_batch.num_computed_tokens_np[:n].tolist()
            starts = input_batch.query_start_loc_np[: n + 1].tolist()
            rows, spans = [], []
            for slot, position, start, stop in zip(slots, begun, starts, starts[1:], strict=False):
                options, n_prompt = self._of_slot[slot]
                rows.append(Row(options, position + stop - start - n_prompt))
                spans.append(Span(options, n_prompt, start, stop, position))
            serving.expect(rows, lambda: spans)
            return super().prepare_inputs(input_batch, req_states)

    Watching.__name__ = Watching.__qualname__ = stock.__name__
    return Watching
