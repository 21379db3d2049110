"""The logits of each step of an engine, by the strategy of each request."""

from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from layerlens.decode.log import Decisions
from layerlens.decode.readouts import Readouts
from layerlens.decode.strategies import Strategy, layers_of
from layerlens.engines.vllm.head import Reads, StockHead, behind_norm
from layerlens.engines.vllm.options import KEY, EngineOptions, RequestOptions, engine_options, request_options
from layerlens.engines.vllm.shards import ShardReadouts, Shards
from layerlens.engines.vllm.store import Store
from layerlens.engines.vllm.traces import Span, Traces, Unread, measured, packed
from layerlens.errors import OptionError
from layerlens.lens.sums import arg_max
from layerlens.tracing.meter import NOTHING, Wanted

_LOGITS_AT_ONCE = 2**27  # of candidates that are read out together; 512 MiB in float32
_MASK = 2**64 - 1


class Row(NamedTuple):
    """A row of a step: a request, and how many tokens it has emitted. The row of a prompt that is still being read in
    parts has a number below 0, or one that comes again; vLLM does not use its logits."""

    options: RequestOptions
    place: int


class Serving:
    """What an engine was started with, and which requests the rows of the next step belong to.

    Args:
        options: of the engine.
        n_layers: L.
        tied: whether the unembedding is the embedding.

    Attributes:
        layers: those that the strategies read, ascending; the last is L.
        model_layers: those whose states come out of the model; all of them where traces can be asked for.
        store, traces: records and traces, until they are fetched.
    """

    def __init__(self, options: EngineOptions, n_layers: int, tied: bool) -> None:
        self.options = options
        self.n_layers = n_layers
        self.tied = tied
        self.layers = options.layers(n_layers, tied)
        self.model_layers = self.layers if options.traces is None else tuple(range(n_layers + 1))
        self.store = Store(options.record_bytes)
        self.traces = Traces(options.record_bytes)
        self._reads: Reads | None = None
        self._rows: Sequence[Row] | None = None
        self._spans: Callable[[], Sequence[Span]] | None = None
        self._has_begun = False

    def options_of(self, params: Any) -> RequestOptions:
        """The options of a request, from vLLM's sampling parameters; those of the engine where it has none."""
        if params is None:
            return RequestOptions(self.options.strategy)
        return request_options(params.extra_args, self.options, params.seed)

    def begins(self, id: str | None, running: Container[str | None]) -> None:
        """A request of that id begins, while others are running. What an earlier one of the same id left is dropped;
        where that one is still running, the records of both would be mixed, and nobody gets them."""
        if id is None:
            return
        if id in running:
            self.store.spoil(id)
        else:
            self.store.forget(id)
        self.traces.take(id)

    @torch.inference_mode()
    def take(
        self, ids: Sequence[str] | None = None, next_ids: Mapping[str, int] | None = None
    ) -> dict[str, dict[str, Any]]:
        """What `Store.take` gives, with the request's trace as `layers`, packed, where it has one.

        Args:
            ids: of requests; None: of all.
            next_ids: the last token of each text, where the targets of traces are read: no later state tells it.

        Raises:
            OptionError: nothing is taken then.
        """
        next_ids = next_ids or {}
        self._refuse_other(ids, next_ids)
        found = self.store.take(ids)
        self._read_ends(list(found), next_ids)
        for id, record in found.items():
            layers = self.traces.take(id)
            if layers is not None and "error" not in record:
                record["layers"] = packed(layers)
        return found

    def expect(self, rows: Sequence[Row], spans: Callable[[], Sequence[Span]]) -> None:
        """The next logits are those of these rows.

        Args:
            rows: of the step.
            spans: gives, while the model runs, the states of the step that belong to each of these requests.
        """
        self._rows = rows
        self._spans = spans
        self._has_begun = True

    def trace(self, states: Sequence[Tensor], last: Tensor, reads: Reads, token_ids: Tensor | None) -> None:
        """Measure the states of a step that are traced.

        Args:
            states: of the layers 0..L, [states, d_model] each.
            last: that of L after the final norm.
            reads: how they are read.
            token_ids: the tokens that the states are of; None where the model was given embeddings in their place.
        """
        rows, spans, self._spans = self._rows, self._spans, None
        self._reads = reads
        wanted = self._wanted
        if spans is None or rows is None:
            if not self._has_begun:  # vLLM measures how much memory a step takes
                measured(states, last, reads, wanted)
            return
        if all(row.options.trace is None for row in rows):
            return
        traced = [span for span in spans() if span.traced]
        if not traced:
            return
        if wanted.targets:
            self._trace_known([*states, last], traced, reads, token_ids)
            return
        index = torch.tensor([row for span in traced for row in span.traced], device=last.device)
        columns = measured([one[index] for one in states], last[index], reads, wanted)
        self.traces.add([(str(span.options.id), span.positions) for span in traced], columns)

    def _trace_known(
        self, states: Sequence[Tensor], traced: Sequence[Span], reads: Reads, token_ids: Tensor | None
    ) -> None:
        """Measure the rows whose next token is known by now: each but the last of a request, which is kept for its next
        step, and the one that was kept in its last step."""
        if token_ids is None:
            raise RuntimeError(
                "this model is given embeddings in place of tokens, so that targets cannot be traced; "
                'start the engine without "targets"'
            )
        kept: list[Tensor] = []
        index: list[int] = []
        following: list[int] = []
        places: list[tuple[str, range]] = []
        for span in traced:
            found = self.traces.unread(str(span.options.id), span.position - 1)
            if found is not None:
                kept.append(found.states)
                following.append(span.start)
                places.append((str(span.options.id), range(found.position, found.position + 1)))
        for span in traced:
            index += span.traced[:-1]
            following += [row + 1 for row in span.traced[:-1]]
            places.append((str(span.options.id), span.positions[:-1]))
        device = states[-1].device
        if following:
            rows = torch.tensor(index, device=device, dtype=torch.long)
            known = [
                torch.cat([torch.stack([one[layer] for one in kept]), state[rows]]) if kept else state[rows]
                for layer, state in enumerate(states)
            ]
            targets = token_ids[torch.tensor(following, device=device)]
            columns = measured(known[:-1], known[-1], reads, self._wanted, targets)
            self.traces.add(places, columns)
        ends = torch.tensor([span.traced[-1] for span in traced], device=device)
        for span, of_row in zip(traced, torch.stack([state[ends] for state in states], dim=1), strict=True):
            # a copy, which does not hold the other requests' rows
            self.traces.keep(str(span.options.id), Unread(span.positions[-1], of_row.clone()))

    def _refuse_other(self, ids: Sequence[str] | None, next_ids: Mapping[str, int]) -> None:
        """OptionError for ids that are no list of names, and for last tokens that are none."""
        if isinstance(ids, str):
            raise OptionError.about("ids", ids, "is not a list of ids", f"give [{ids!r}]")
        for id, token_id in next_ids.items():
            if ids is not None and id not in ids:
                raise OptionError.about("next_ids", id, "is not among the ids that are asked for", "mend its name")
            n_vocab = 2**31 if self._reads is None else self._reads.n_vocab
            if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < n_vocab:
                what = "has a last token that is no token of the model"
                raise OptionError.about("next_ids", {id: token_id}, what, f"give a whole number below {n_vocab}")

    def _read_ends(self, ids: Sequence[str], next_ids: Mapping[str, int]) -> None:
        """Measure the last rows of texts that have ended."""
        found = {id: row for id in ids if (row := self.traces.unread(id)) is not None}
        if not found or self._reads is None:
            return
        states = torch.stack([row.states for row in found.values()], dim=1)
        targets = torch.tensor([next_ids.get(id, NOTHING) for id in found], device=states.device)
        columns = measured(list(states[:-1]), states[-1], self._reads, self._wanted, targets)
        self.traces.add([(id, range(row.position, row.position + 1)) for id, row in found.items()], columns)

    @property
    def _wanted(self) -> Wanted:
        assert self.options.traces is not None
        return self.options.traces

    def logits(self, kept: Tensor, reads: Reads) -> Tensor:
        """The logits for the sampler.

        Args:
            kept: the states of the kept layers, and at the end L's after the final norm: [rows, layers + 1, d_model].
            reads: how they are read.

        The first call of a step is about the rows that were announced. vLLM makes further calls for the
        log-probabilities of prompts: these get the last layer's logits. Before the first step vLLM measures how much
        memory it needs; then all rows are read as the engine's strategy reads them.
        """
        if not here.is_told:
            raise RuntimeError("vLLM did not load layerlens.engines.vllm.rows; install layerlens again beside vLLM")
        rows, self._rows = self._rows, None
        if rows is None and self._has_begun:
            return reads.logits_of(kept[:, -1].contiguous())
        if rows is None:
            rows = [Row(RequestOptions(self.options.strategy), -1)] * len(kept)
        if len(rows) != len(kept):
            raise RuntimeError(f"vLLM asks for logits of {len(kept)} rows, but {len(rows)} requests were announced")
        return self._chosen(kept, rows, reads)

    def _chosen(self, kept: Tensor, rows: Sequence[Row], reads: Reads) -> Tensor:
        groups: dict[Strategy, list[int]] = {}
        for index, row in enumerate(rows):
            groups.setdefault(row.options.strategy, []).append(index)
        if len(groups) == 1:
            return self._by_one(next(iter(groups)), kept, rows, reads)
        answer = kept.new_empty(len(kept), reads.n_vocab, dtype=torch.float32)
        for strategy, indices in groups.items():
            of_group = torch.tensor(indices, device=kept.device)
            answer[of_group] = self._by_one(strategy, kept[of_group], [rows[index] for index in indices], reads).float()
        return answer

    def _by_one(self, strategy: Strategy, kept: Tensor, rows: Sequence[Row], reads: Reads) -> Tensor:
        """The logits of rows with the same strategy."""
        layers = layers_of(strategy, self.n_layers, self.tied)
        if not layers:
            logits = reads.logits_of(kept[:, -1].contiguous())
            if _recorded(rows):
                top = arg_max(logits.float())
                layer = torch.full_like(top, self.n_layers)
                finite = logits.gather(1, top.unsqueeze(1))[:, 0].abs() < torch.inf
                numbers = torch.stack([top, layer, -torch.ones_like(top), torch.ones_like(top), finite], dim=1)
                self._record(rows, Decisions(numbers.int(), logits.new_empty(len(rows), 0, dtype=torch.float32)))
            return logits
        at_once = max(1, _LOGITS_AT_ONCE // (len(layers) * reads.n_vocab))
        shards = reads.shards if strategy.by_shards else None
        answers = []
        for start in range(0, len(rows), at_once):
            part = slice(start, start + at_once)
            readouts = self._readouts(layers, kept[part], rows[part], reads, shards)
            choice = strategy.choose(readouts)
            if shards is not None:
                choice = choice._replace(logits=shards.whole(choice.logits))
            if _recorded(rows[part]):
                greatest = choice.logits.amax(1)  # a NaN counts as the greatest
                self._record(rows[part], Decisions.of(choice, readouts.projections, greatest))
            answers.append(choice.logits)
        return answers[0] if len(answers) == 1 else torch.cat(answers)

    def _readouts(
        self, layers: Sequence[int], kept: Tensor, rows: Sequence[Row], reads: Reads, shards: Shards | None
    ) -> Readouts:
        logits_of = reads.logits_of if shards is None else shards.logits_of
        n_columns = reads.n_vocab if shards is None else shards.width
        head = StockHead(logits_of, n_columns, kept.device)
        place = {layer: index for index, layer in enumerate(self.layers)}
        states = {
            layer: behind_norm(kept[:, -1]) if layer == self.n_layers else reads.at_head(kept[:, place[layer]], layer)
            for layer in layers
        }
        kind = Readouts if shards is None else partial(ShardReadouts, shards)
        return kind(
            head,
            states,
            self.n_layers,
            lambda: torch.tensor([uniform(row.options.seed, row.place) for row in rows], device=kept.device),
            tied=self.tied,
            # to look at values would make the host wait for the device at every step
            may_branch=kept.device.type == "cpu",
        )

    def _record(self, rows: Sequence[Row], decisions: Decisions) -> None:
        asked = _recorded(rows)
        if not asked:
            return
        if len(asked) < len(rows):
            index = torch.tensor(asked, device=decisions.numbers.device)
            decisions = Decisions(decisions.numbers[index], decisions.values[index])
        self.store.add([(str(rows[index].options.id), rows[index].place) for index in asked], decisions)


class Here:
    """What this process knows of its engine. A process has one engine at a time; vLLM copies its config in places, so
    that no part of it could serve as a name.

    Attributes:
        options, layers, tied: of the engine that was configured last, by which the process that takes requests checks
            them; None where that engine has no layerlens.
        n_engines: how many engines share the requests, by data parallelism.
        serving: where the model is in this process, what serves it.
        is_told: whether a model runner of this process tells which requests are in a step.
    """

    options: EngineOptions | None = None
    layers: tuple[int, ...] | None = None
    tied = False
    n_engines = 1
    serving: Serving | None = None
    is_told = False


here = Here()


def begin(vllm_config: Any) -> Serving:
    """What serves the model that is made now in this process."""
    config = vllm_config.model_config
    options = engine_options(vllm_config.additional_config[KEY])
    here.serving = Serving(options, config.get_total_num_hidden_layers(), is_tied(config))
    return here.serving


def is_tied(model_config: Any) -> bool:
    """Whether the unembedding is the embedding."""
    return bool(getattr(model_config.hf_text_config, "tie_word_embeddings", False))


def is_on(vllm_config: Any) -> bool:
    """Whether the engine was started with layerlens."""
    return isinstance(vllm_config.additional_config, dict) and KEY in vllm_config.additional_config


def uniform(seed: int, place: int) -> float:
    """A number 0 <= u < 1 that depends on nothing but the seed of a request and the number of its token.

    Two rounds of the finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
    """
    mixed = seed
    for value in (place, 0x9E3779B97F4A7C15):
        mixed = (mixed + (value + 1) * 0x9E3779B97F4A7C15) & _MASK
        mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & _MASK
        mixed ^= mixed >> 31
    return (mixed >> 40) / 2**24


def _recorded(rows: Sequence[Row]) -> list[int]:
    """Which rows belong to requests that asked for records, and emit a token."""
    return [index for index, row in enumerate(rows) if row.options.id is not None and row.place >= 0]
