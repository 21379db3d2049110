"""Whether a model family can be traced and decoded from. Every step is tried on a tiny random model, and checked.

The results of tracing and decoding are compared with a plain reading that shares none of their code: the logits of each
layer come from the model itself, run with a last block that hands on the state of that layer.
"""

import re
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from layerlens.decode.loop import generate
from layerlens.decode.padding import padding_fault
from layerlens.decode.speculative.branching import branching_fault
from layerlens.decode.speculative.fixed import FixedSkip
from layerlens.decode.speculative.skipping import indispensable, parts_of
from layerlens.decode.speculative.skipset import SkipSet
from layerlens.decode.strategies import Valley
from layerlens.errors import ModelError, OptionError, first_sentence
from layerlens.models import Model, load, tiny_model, tiny_tokenizer
from layerlens.models.check_readout import UnknownHead
from layerlens.models.hooks import replaced, watch_blocks
from layerlens.models.quiet import quiet
from layerlens.support.families import families, refuse_unknown
from layerlens.tracing.tracer import trace

VERDICTS = ("works", "refused", "not tried", "fails")
STEPS = {
    "load": "blocks and unembedding are found, no position sees a later one, the last block's readout is the logits",
    "generate": "the model generates and is traced",
    "replay": "one pass over the same text records the same numbers",
    "readout": "they are what a plain reading of every layer gives",
    "valley": "decoding from the valley emits the tokens, of the layers, that a plain walk finds",
    "padding": "texts of different lengths give the same numbers together as alone, or generating together is refused",
    "drafts": "drafts with blocks left out change no token, or are refused",
}
_TEXTS = ["Hello there, you and I", "a b"]
_N_NEW = 5
_N_WITH_DRAFTS = 16  # the first few come without
_WINDOW = 3
_NUMBERS = ("norm_ratio", "io_cosine", "attn_ratio", "mlp_ratio", "entropy")
# float32; recurrences compute a full pass in chunks, and single steps one by one
_TOLERANCE = 2e-3
_PLURAL = {"works": "work", "fails": "fail"}
# the beginning of a refusal, class and family, and the advice at its end
_NAMES = re.compile(r"^\S+ \(\S+\) (cannot be traced: )?")
_ADVICE = re.compile(r"; layerlens traces .*")

_COLUMNS = ("family", "verdict", *STEPS, "parts", "layers of the tiny model", "seconds")


@dataclass(frozen=True)
class Coverage:
    """The result of checking one family."""

    name: str
    """transformers' model type."""
    verdict: str
    """One of VERDICTS."""
    reason: str = ""
    """Why it does not work, in a sentence that begins with the step at which it fails; empty where it works."""
    passed: tuple[str, ...] = ()
    """The STEPS that succeeded."""
    layers: tuple[str, ...] = ()
    """The kind of each layer of its tiny model, such as "sliding"; empty where it did not load."""
    parts: bool | None = None
    """Whether the attention part and the MLP part of each block are recorded; None where it did not load."""
    padding: str = ""
    """Why prompts of different lengths cannot generate in one batch; empty where they can, or where nothing loaded."""
    drafts: str = ""
    """Why no tokens can be drafted with blocks left out; empty where they can, or where nothing loaded."""
    draft_kinds: tuple[str, ...] = ()
    """What drafts can do beyond leaving out whole blocks: "trees", "parts"."""
    seconds: float = 0.0
    """The seconds that the check took."""

    @property
    def kinds(self) -> str:
        """The number of layers of each kind: "3 sliding, 1 full"."""
        return ", ".join(f"{count} {kind}" for kind, count in Counter(self.layers).items())


class _Disagreement(Exception):
    """Two ways to compute the same numbers gave different ones."""


def check_families(names: Sequence[str] = ()) -> Iterator[Coverage]:
    """The result of checking each of these families, or all of `families()`, each as soon as it is known.

    Raises:
        OptionError: transformers has no such family. It is raised before anything is checked.
    """
    for name in names:
        refuse_unknown(name)
    return map(check_family, names or families())


def check_family(name: str) -> Coverage:
    """Load a tiny random model of the family, trace it in both modes, decode from it, and pad it; all on the CPU.

    The verdict is that it works where all STEPS succeed, that it is refused where layerlens says that it cannot trace
    it, and that it fails where anything else goes wrong. It is not tried where transformers cannot build a tiny model.

    Raises:
        OptionError: transformers has no such family.
    """
    refuse_unknown(name)
    started = time.perf_counter()
    with quiet(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        coverage = _checked(name)
    return replace(coverage, seconds=round(time.perf_counter() - started, 2))


def as_table(coverages: Iterable[Coverage]) -> Iterator[str]:
    """The lines of a Markdown table, one for each family, after a line on what made it and before a summary."""
    yield f"Made with transformers {transformers.__version__} by `layerlens models --check --markdown`.\n"
    yield f"| {' | '.join(_COLUMNS)} |"
    yield f"|{'---|' * len(_COLUMNS)}"
    kept = []
    for one in coverages:
        kept.append(one)
        yield f"| {' | '.join(cell.replace('|', '/') for cell in _cells(one))} |"
    yield f"\n{summed_up(kept)}."


def summed_up(coverages: Sequence[Coverage]) -> str:
    """How many families have each verdict."""
    counts = Counter(one.verdict for one in coverages)
    said = ", ".join(f"{counts[verdict]} {_PLURAL.get(verdict, verdict)}" for verdict in VERDICTS)
    return f"{len(coverages)} famil{'y' if len(coverages) == 1 else 'ies'}: {said}"


def _cells(one: Coverage) -> list[str]:
    reason = _ADVICE.sub("", _NAMES.sub("", one.reason))
    reason = f"it {reason}" if reason.startswith("is ") else reason
    marks = {step: "✓" if step in one.passed else "" for step in STEPS}
    if one.padding:
        marks["padding"] = f"one by one: {one.padding}"
    if marks["drafts"]:
        marks["drafts"] = f"refused: {one.drafts}" if one.drafts else ", ".join(("✓", *one.draft_kinds))
    return [
        f"`{one.name}`",
        f"{one.verdict}: {reason}" if reason else one.verdict,
        *marks.values(),
        {True: "✓", False: "null", None: ""}[one.parts],
        one.kinds,
        f"{one.seconds:.1f}",
    ]


def _checked(name: str) -> Coverage:
    try:
        hf = tiny_model(name)
    except ModelError as error:
        return Coverage(name, "not tried", error.problem)
    coverage = Coverage(name, "works")
    try:
        for step, learned in zip(STEPS, _steps(hf), strict=True):
            coverage = replace(coverage, passed=(*coverage.passed, step), **learned)
    except Exception as error:  # any error is a fault of layerlens, except a refusal at load
        if isinstance(error, ModelError) and not (coverage.passed or isinstance(error, UnknownHead)):
            return replace(coverage, verdict="refused", reason=str(error))
        step = list(STEPS)[len(coverage.passed)]
        return replace(coverage, verdict="fails", reason=f"at {step}: {_described(error)}")
    return coverage


def _steps(hf: PreTrainedModel) -> Iterator[dict[str, Any]]:
    """What STEPS tell about the family, as far as they succeed: fields of `Coverage`."""
    model = load(hf, tokenizer=tiny_tokenizer())
    yield {"layers": tuple(model.layer_kinds), "parts": None not in model.sublayers}
    generated = _traced(model, "generate", 1)
    yield {}
    replayed = _traced(model, "replay", 1)
    _agree("generating", generated, "replaying", replayed)
    yield {}
    _agree("a plain reading", _plain_numbers(model, generated), "the trace", replayed)
    yield {}
    _check_decoding(model)
    yield {}
    yield {"padding": _padding(model, generated)}
    yield _drafts(model)


def _described(error: Exception) -> str:
    return str(error) if isinstance(error, _Disagreement) else f"{type(error).__name__}: {first_sentence(error)}"


def _padding(model: Model, alone: dict[str, np.ndarray]) -> str:
    """Why prompts of different lengths cannot generate together, or "". Given texts must be traced alike together."""
    _agree("texts one by one", _traced(model, None, 1), "together", _traced(model, None, len(_TEXTS)))
    try:
        together = _traced(model, "generate", len(_TEXTS))
    except OptionError as error:
        if error.option != "batch_size":
            raise
        return padding_fault(model) or ""
    _agree("generating one by one", alone, "together", together)
    return ""


def _drafts(model: Model) -> dict[str, Any]:
    """Why nothing can be drafted, and what drafts can do: fields of `Coverage`. Drafts must change no token."""
    able = sorted(set(range(model.n_layers)) - indispensable(model))
    if not able:
        return {"drafts": "each of its blocks is the first of its kind"}
    kinds = {"trees": branching_fault(model) is None, "parts": parts_of(model) is not None}
    n = _N_WITH_DRAFTS
    options: dict[str, Any] = {"max_new_tokens": n, "min_new_tokens": n, "generation_config": False}
    plain = [generate(model, text, **options).token_ids for text in _TEXTS]
    skips = [SkipSet.of_blocks(able[-2:])] + [SkipSet(frozenset(able[:1]), frozenset(able[-1:]))] * kinds["parts"]
    for skipped in skips:
        for tree in (False, True)[: 1 + kinds["trees"]]:
            policy = FixedSkip(skipped, length=3, threshold=0.0, tree=tree, patience=None)
            try:
                drafted = [generate(model, text, draft=policy, **options).token_ids for text in _TEXTS]
            except ModelError as error:
                if error.option != "draft":
                    raise
                return {"drafts": error.problem.partition(": ")[2]}
            if drafted != plain:
                raise _Disagreement(f"drafts without {skipped} give tokens {drafted} in place of {plain}")
    return {"draft_kinds": tuple(kind for kind, can in kinds.items() if can)}


def _traced(model: Model, mode: str | None, batch_size: int) -> dict[str, np.ndarray]:
    """The numbers of a trace by name, [positions, L] each; without a mode, those of the given texts alone."""
    n_new = _N_NEW if mode else 0
    options: dict[str, Any] = {"max_new_tokens": n_new, "min_new_tokens": n_new, "mode": mode, "batch_size": batch_size}
    options["generation_config"] = False  # the plain walk has none
    with tempfile.TemporaryDirectory() as folder:
        run = trace(model, _TEXTS, out=Path(folder) / "run", progress=False, **options)
        next_token_id = run.positions["next_token_id"].astype("float").to_numpy()
        return {name: run.layers(name) for name in _NUMBERS} | {"next_token_id": next_token_id}


def _agree(one: str, left: dict[str, np.ndarray], other: str, right: dict[str, np.ndarray]) -> None:
    for name, values in left.items():
        if values.shape != right[name].shape:
            raise _Disagreement(f"{one} and {other} record {values.shape} and {right[name].shape} of {name}")
        apart = np.abs(values - right[name]) / np.maximum(1.0, np.abs(values))
        worst = np.max(apart, where=~np.isnan(apart), initial=0.0)
        if not np.array_equal(np.isnan(values), np.isnan(right[name])) or worst > _TOLERANCE:
            raise _Disagreement(f"{one} and {other} differ by {worst:.1e} in {name}")


def _plain_numbers(model: Model, generated: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a trace of the texts, and of what was generated from them, should record, [positions, L] each."""
    rows: dict[str, list[Tensor]] = {"norm_ratio": [], "io_cosine": [], "entropy": []}
    for text, emitted in zip(_TEXTS, np.split(generated["next_token_id"].astype(int), len(_TEXTS)), strict=True):
        prompt = model.tokenizer(text).input_ids
        states, logits = _plain_reading(model, [*prompt, *emitted[:-1].tolist()], model.n_layers)
        before, after = states[:-1, len(prompt) - 1 :], states[1:, len(prompt) - 1 :]
        log_probs = logits[:, len(prompt) - 1 :].log_softmax(-1)
        rows["norm_ratio"].append((after - before).norm(dim=-1) / before.norm(dim=-1))
        rows["io_cosine"].append(torch.cosine_similarity(before, after, dim=-1))
        rows["entropy"].append(-(log_probs.exp() * log_probs).sum(-1))
    return {name: torch.cat(pieces, dim=1).T.numpy() for name, pieces in rows.items()}


def _check_decoding(model: Model) -> None:
    """Check that decoding from the valley emits the tokens, of the layers, that a plain walk finds in that text."""
    for text in _TEXTS:
        decoded = generate(model, text, strategy=Valley(window=_WINDOW), max_new_tokens=_N_NEW, generation_config=False)
        prompt = model.tokenizer(text).input_ids
        _, logits = _plain_reading(model, [*prompt, *decoded.token_ids[:-1]], min(_WINDOW, model.n_layers))
        emitted = zip(decoded.token_ids, decoded.steps["selected_layer"], strict=True)
        for position, (token_id, layer) in enumerate(emitted, start=len(prompt) - 1):
            n_back = _steps_back([_entropy(of_layer) for of_layer in logits[:, position]])
            top = int(logits[-1 - n_back, position].argmax())
            if (token_id, layer) != (top, model.n_layers - n_back):
                raise _Disagreement(
                    f"decoding emits token {token_id} of layer {layer} where a plain walk finds {top} of "
                    f"{model.n_layers - n_back}"
                )


@torch.no_grad()
def _plain_reading(model: Model, token_ids: list[int], n_last: int) -> tuple[Tensor, Tensor]:
    """The states [L + 1, seq, d_model] of one pass, the embeddings first, and the logits [n_last, seq, vocab] that the
    model gives if its last block hands on the state of each of the last `n_last` layers instead of its own."""
    ids, streams = torch.tensor([token_ids]), list[tuple[Tensor, Tensor]]()
    with watch_blocks(
        model.blocks, [None] * model.n_layers, lambda _, h_in, __, h_out: streams.append((h_in.clone(), h_out.clone()))
    ):
        model.hf(input_ids=ids, use_cache=False)
    logits = []
    for _, h_out in streams[model.n_layers - n_last :]:
        with replaced(model.blocks[-1], h_out):
            logits.append(model.hf(input_ids=ids, use_cache=False).logits[0].double())
    return torch.cat([streams[0][0], *(h_out for _, h_out in streams)]), torch.stack(logits)


def _entropy(logits: Tensor) -> float:
    """Shannon entropy in nats."""
    log_probs = logits.log_softmax(-1)
    return float(-(log_probs.exp() * log_probs).sum())


def _steps_back(curve: list[float]) -> int:
    """By Eq. 7: how often the entropy strictly falls, going back from the last entry."""
    n_steps = 0
    while n_steps + 1 < len(curve) and curve[-n_steps - 2] < curve[-n_steps - 1]:
        n_steps += 1
    return n_steps
