"""One batch of prompts by self-speculative decoding: a draft leaves blocks out, the whole model reads all that was
drafted in one pass, and what it would have emitted itself is kept."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import takewhile

import torch
from torch import Tensor

from layerlens.compat import decoding_fast
from layerlens.decode.batch import Decoded
from layerlens.decode.chooser import Chooser
from layerlens.decode.forward import Forward
from layerlens.decode.log import Decisions
from layerlens.decode.options import GenerateOptions
from layerlens.decode.prompts import pad, pad_token_id, refuse_unreadable
from layerlens.decode.rows import Row
from layerlens.decode.sampling import Sampler
from layerlens.decode.speculative.acceptance import Draft, sampled_choice
from layerlens.decode.speculative.drafter import Drafter, Seconds
from layerlens.decode.speculative.lab import Lab
from layerlens.decode.speculative.policy import Round
from layerlens.decode.speculative.skipping import skipping
from layerlens.decode.strategies import Strategy
from layerlens.errors import OptionError
from layerlens.lens.sums import arg_max
from layerlens.lens.transport import IDENTITY, Transport
from layerlens.models import Model
from layerlens.records.manifest import digest


def decode_drafted(
    model: Model,
    prompts: Sequence[Sequence[int]],
    strategy: Strategy,
    options: GenerateOptions,
    seed: int,
    drafter: Drafter,
    *,
    transport: Transport = IDENTITY,
    on_tokens: Callable[[int], None] | None = None,
    watch: "Watch | None" = None,
) -> Decoded:
    """What is emitted for each prompt: the tokens that the strategy emits without drafts.

    Where tokens are not sampled they are the same, but for ties of two logits within rounding. Where they are, they
    are drawn from the same distribution.

    Args:
        model: the model that decodes.
        prompts: token ids.
        strategy: chooses the logits of the whole model.
        options: of the generation.
        seed: of everything that is drawn.
        drafter: makes the drafts.
        transport: that of the lens.
        on_tokens: called with the number of tokens after each round.
        watch: is told of the whole model's passes.

    Raises:
        OptionError: the strategy chooses for a batch as a whole.
    """
    if strategy.for_one_row().whole_batch:
        raise OptionError.about(
            "strategy",
            type(strategy).__name__,
            "chooses for a batch as a whole",
            "give another, or decode without drafts",
        )
    batch = _Batch(model, prompts, strategy, options, seed, drafter, transport, watch or Watch())
    with torch.no_grad(), batch.chooser.choosing():
        return batch.run(on_tokens or (lambda _: None))


class Watch:
    """Is told of the whole model's passes, and of what became of them; this one does nothing."""

    @contextmanager
    def passing(self, rows: Sequence[int], n_tokens: int | None) -> Iterator[None]:
        """Open around each pass, and around no pass of a draft or a search.

        Args:
            rows: the numbers of the prompts that the rows belong to.
            n_tokens: how many tokens of each row are read; None for the prompts.
        """
        yield

    def kept(self, read: Sequence[Sequence[int]], emitted: Sequence[Sequence[int]]) -> None:
        """Called once it is known which tokens of the last pass belong to the texts.

        Args:
            read: for each row, which of the tokens that the pass read, 0-based; of the prompts, none.
            emitted: for each row, the tokens that followed these; for the prompts, the one that followed.
        """


class _Text(Row):
    """One prompt's text.

    Attributes:
        number: of the prompt in the batch.
        reason: why the text has ended; None while it goes on.
        n_accepted: how many of the tokens drafted last were emitted.
        n_siblings: how many of these were siblings.
        chosen: the whole model's best token at each place of the output.
    """

    def __init__(self, number: int, model: Model, prompt: Sequence[int], options: GenerateOptions, seed: int) -> None:
        own = int(digest(f"{seed}/row {number}")[:8], 16) if number else seed
        super().__init__(model, prompt, options, own)
        self.number = number
        self.reason: str | None = None
        self.n_accepted = self.n_siblings = 0
        self.chosen: list[int] = []

    @property
    def read(self) -> list[int]:
        """The tokens that the model has read: all but the last."""
        return [*self.prompt_ids, *self.output[:-1]]


class _StepChooser(Chooser):
    """Draws for a token what plain decoding draws for it, whenever the token is looked at."""

    def __init__(self, model: Model, strategy: Strategy, seed: int, transport: Transport, n_rows: int) -> None:
        super().__init__(model, strategy, seed, transport)
        self.may_branch = model.device.type == "cpu"
        self.places: list[tuple[int, int]] = [(row, 0) for row in range(n_rows)]
        self._n_first = n_rows
        self._drawn: list[Tensor] = []

    def _draw(self, n_rows: int) -> Tensor:
        for _ in range(max(step for _, step in self.places) + 1 - len(self._drawn)):
            draws = torch.rand(self._n_first, generator=self.generator, device=self.generator.device)
            self._drawn.append(draws)
        return torch.stack([self._drawn[step][row] for row, step in self.places])


class _Tree:
    """The nodes that the whole model reads for one batch: the pending token, the spine, then siblings.

    Attributes:
        token_ids: [rows, nodes].
        parents: for each node the index of the node before it; -1 for the first.
        depths: how many tokens after the pending one each node stands.
        siblings: for each row and place, the node of each token that is not the spine's.
    """

    def __init__(self, pending: Sequence[int], drafts: Sequence[Draft], pad_id: int) -> None:
        n = max(len(draft.places) for draft in drafts)
        self.token_ids = []
        for token, draft in zip(pending, drafts, strict=True):
            self.token_ids.append([token, *draft.spine, *([pad_id] * (n - len(draft.places)))])
        self.parents = [list(range(-1, n)) for _ in drafts]
        self.depths = [list(range(n + 1)) for _ in drafts]
        self.siblings: list[list[dict[int, int]]] = []
        for row, draft in enumerate(drafts):
            of_row: list[dict[int, int]] = []
            for place, tokens in enumerate(draft.places):
                of_row.append({})
                for token in tokens[1:]:
                    of_row[-1][token] = len(self.token_ids[row])
                    self.token_ids[row].append(token)
                    self.parents[row].append(place)
                    self.depths[row].append(place + 1)
            self.siblings.append(of_row)
        self.is_chain = all(len(ids) == n + 1 for ids in self.token_ids)
        most = max(map(len, self.token_ids))
        for ids, parents, depths in zip(self.token_ids, self.parents, self.depths, strict=True):
            missing = most - len(ids)
            ids += [pad_id] * missing
            parents += [-1] * missing
            depths += [0] * missing

    def __len__(self) -> int:
        return len(self.token_ids[0])


class _Batch:
    def __init__(
        self,
        model: Model,
        prompts: Sequence[Sequence[int]],
        strategy: Strategy,
        options: GenerateOptions,
        seed: int,
        drafter: Drafter,
        transport: Transport,
        watch: Watch,
    ) -> None:
        self._model, self._options, self._drafter, self._watch = model, options, drafter, watch
        self._texts = [_Text(number, model, prompt, options, seed) for number, prompt in enumerate(prompts)]
        self._rows = list(self._texts)
        self._pad = pad_token_id(model)
        self.chooser = _StepChooser(model, strategy.for_one_row(), seed, transport, len(prompts))
        ids, mask = (tensor.to(model.device) for tensor in pad(prompts, self._pad, left=True))
        self._forward = Forward(model, ids, mask, 1, static=False, rewinds=True, n_spare=drafter.search.n_back)

    def run(self, on_tokens: Callable[[int], None]) -> Decoded:
        """Decode until every row has ended."""
        self._drafter.begin()
        with self._watch.passing([text.number for text in self._rows], None):
            logits = self._forward.prompts()
        decisions = self._decisions(1)
        for row, text in enumerate(self._rows):
            self._emit(text, logits[row : row + 1], decisions[row][0], (), None)
        self._watch.kept([[] for _ in self._rows], [text.output for text in self._rows])
        on_tokens(len(self._rows))
        self._leave_out_ended()
        with decoding_fast(self._model.hf):
            while self._rows:
                refuse_unreadable((text.output[-1] for text in self._rows), self._model.n_known_tokens)
                on_tokens(self._round())
                self._leave_out_ended()
        outputs, reasons = [text.output for text in self._texts], [str(text.reason) for text in self._texts]
        return Decoded(outputs, reasons, [text.decisions for text in self._texts])

    def _round(self) -> int:
        """Draft, verify, keep what holds; the number of tokens emitted."""
        drafter, search = self._drafter, self._drafter.search
        skips, searches, was_over = search.skips, drafter.searches, search.is_over
        began = time.perf_counter()
        most = min(drafter.length(len(self._rows)), max(text.n_left for text in self._rows) - 1)
        length = self._model.context_length
        if length is not None and self._forward.n_slots + most + 1 > length:
            self._forward.narrow()
            # beyond the context there are no positions, not even for padding
            most = max(0, min(most, length - self._forward.n_slots - 1))
        drafts = self._drafted(most)
        drafted_at = time.perf_counter()
        tree = _Tree([text.output[-1] for text in self._rows], drafts, self._pad)
        logits, decisions = self._passed(tree, searches=searches)
        if len(tree) > 1 and not all(bool(one.is_finite) for row in decisions for one in row):
            # a state that is no number spoils those of other nodes, though they do not attend to it
            self._watch.kept([[] for _ in self._rows], [[] for _ in self._rows])
            self._forward.rewind(len(tree))
            drafts = [Draft(is_done=True) for _ in self._rows]
            tree = _Tree([text.output[-1] for text in self._rows], drafts, self._pad)
            logits, decisions = self._passed(tree, searches=searches)
        before = [len(text.output) for text in self._rows]
        read = [
            self._accepted(text, draft, logits[row], decisions[row], tree.siblings[row])
            for row, (text, draft) in enumerate(zip(self._rows, drafts, strict=True))
        ]
        emitted = [text.output[n:] for text, n in zip(self._rows, before, strict=True)]
        self._watch.kept(read, emitted)
        self._forward.retract(len(tree), read)
        verified_at = time.perf_counter()
        last = Round(
            max(len(text.output) for text in self._rows),
            [len(draft.places) for draft in drafts],
            [text.n_accepted for text in self._rows],
            [text.n_siblings for text in self._rows],
            [len(tokens) for tokens in emitted],
            read,
            skips,
        )
        if searches:
            lab = Lab(
                self._model, self._forward, [text.read for text in self._rows], [text.chosen for text in self._rows]
            )
            self.chooser.is_running = False
            search.after(last, lab)
            self.chooser.is_running = True
        seconds = Seconds(drafted_at - began, verified_at - drafted_at, time.perf_counter() - verified_at)
        drafter.add(last, seconds, was_over=was_over)
        return sum(map(len, emitted))

    def _passed(self, tree: _Tree, *, searches: bool) -> tuple[Tensor, list[list[Decisions]]]:
        """The whole model's logits after each node, and what the strategy decided about it."""
        with ExitStack() as stack:
            if searches:
                stack.enter_context(self._drafter.search.watching(len(tree)))
            stack.enter_context(self._watch.passing([text.number for text in self._rows], len(tree)))
            logits = self._verified(tree)
        return logits, self._decisions(len(tree))

    def _drafted(self, most: int) -> list[Draft]:
        """A draft for each row, of at most so many tokens; the cache is left as it was."""
        drafts = [Draft(is_done=min(most, text.n_left - 1) < 1) for text in self._rows]
        policy, samples = self._drafter.policy, self._options.samples
        forks = [text.sampler.fork() for text in self._rows] if most > 0 else []
        token_ids = [text.output[-1] for text in self._rows]
        n_steps = 0
        self.chooser.is_running = False
        with ExitStack() as stack:
            if most > 0:
                stack.enter_context(skipping(self._model, self._drafter.skips))
                self._forward.make_room(most)
            while not all(draft.is_done for draft in drafts):
                ids = torch.tensor(token_ids, device=self._model.device).unsqueeze(1)
                logits = self._forward.step(ids)[:, 0]
                n_steps += 1
                for row, (text, draft) in enumerate(zip(self._rows, drafts, strict=True)):
                    if not draft.is_done:
                        self._extend(draft, text, forks[row], logits[row : row + 1], most, policy.tree, samples)
                token_ids = [draft.places[-1][0] if draft.places else self._pad for draft in drafts]
        self.chooser.is_running = True
        if n_steps:
            self._forward.rewind(n_steps)
        return drafts

    def _extend(
        self, draft: Draft, text: _Text, fork: Sampler, logits: Tensor, most: int, tree: bool, samples: bool
    ) -> None:
        step = text.step + len(draft.places)
        if samples and logits.shape[1] > self._model.n_known_tokens:
            # what ends a draft must not depend on what was drawn
            logits = logits.clone()
            logits[:, self._model.n_known_tokens :] = -torch.inf
        sure = draft.extend(logits, fork, step, samples=samples, tree=tree)
        # the model cannot read some tokens that it can emit
        known = list(takewhile(lambda token: token < self._model.n_known_tokens, draft.places.pop()))
        if not known:
            draft.is_done = True
            return
        draft.places.append(known)
        n_places = len(draft.places)
        draft.is_done = (
            sure < self._drafter.policy.threshold
            or text.is_end(draft.places[-1][0])
            or n_places >= min(most, text.n_left - 1)
        )

    def _verified(self, tree: _Tree) -> Tensor:
        """The whole model's logits after each node: [rows, nodes, vocab]."""
        device, n = self._model.device, len(tree)
        ids = torch.tensor(tree.token_ids, device=device)
        self.chooser.n_read = n
        self.chooser.places = [
            (text.number, len(text.output) + depth)
            for text, depths in zip(self._rows, tree.depths, strict=True)
            for depth in depths
        ]
        self._forward.make_room(n)
        if tree.is_chain:
            return self._forward.step(ids, n_read=n)
        return self._forward.branch(ids, torch.tensor(tree.parents, device=device), n)

    def _decisions(self, n: int) -> list[list[Decisions]]:
        """What the strategy decided about each node of each row."""
        decided = self.chooser.decisions
        assert decided is not None
        numbers, values = decided.numbers.cpu(), decided.values.cpu()
        return [
            [Decisions(numbers[at : at + 1], values[at : at + 1]) for at in range(row * n, row * n + n)]
            for row in range(len(self._rows))
        ]

    def _accepted(
        self, text: _Text, draft: Draft, logits: Tensor, decisions: Sequence[Decisions], siblings: list[dict[int, int]]
    ) -> list[int]:
        """Emit what the whole model would have emitted, as far as it has read it; the nodes that were read for it."""
        node, read = 0, [0]
        text.n_accepted = text.n_siblings = 0
        for place in range(len(draft.places) + 1):
            drafted = draft.places[place] if place < len(draft.places) else []
            probs = draft.probs[place] if drafted and draft.probs else None
            token = self._emit(text, logits[node : node + 1], decisions[node], drafted, probs)
            text.n_accepted += token in drafted
            text.n_siblings += token in drafted[1:]
            if token is None or text.reason is not None or token not in drafted:
                break
            is_sibling = token != drafted[0]
            node = siblings[place][token] if is_sibling else place + 1
            read.append(node)
            if is_sibling:
                self._emit(text, logits[node : node + 1], decisions[node], [], None)
                break
        return read

    def _emit(
        self, text: _Text, logits: Tensor, decisions: Decisions, drafted: Sequence[int], draft_probs: Tensor | None
    ) -> int | None:
        """Emit one token; None where the logits are not finite."""
        if not bool(decisions.is_finite):
            text.reason = "non_finite"
            return None
        scores = text.sampler.scores(logits, text.step)
        token = best = int(arg_max(scores))
        if self._options.samples:
            probs = text.sampler.probabilities(scores)[0]
            token = sampled_choice(probs, drafted, draft_probs, text.sampler)
        text.chosen.append(best)
        text.sampler.append(torch.tensor([token], device=logits.device))
        text.reason = text.emit(token, decisions)
        return token

    def _leave_out_ended(self) -> None:
        """Go on with the rows that have not ended."""
        kept = [row for row, text in enumerate(self._rows) if text.reason is None]
        if kept and len(kept) < len(self._rows):
            self._forward.keep_rows(torch.tensor(kept, device=self._model.device))
        self._rows = [self._rows[row] for row in kept]
