"""What the token explorer needs of a run, small enough to be part of a page.

Every column of a prompt is an array, deflated and written in base64. Measures are rounded to a limited number of steps,
as many as fit: 65,535 for a short run. The steps lie evenly between the smallest and the largest value of each layer,
on a curve that has finer steps for small values: the square root for entropies and divergences, ln(1 + 100 x) for norm
ratios, ln(1 + x) for ranks. The first tokens of each layer are added last, as far as there is room.
"""

import base64
import json
import re
import zlib
from collections.abc import Callable, Sequence
from math import log2
from typing import Any

import numpy as np

from layerlens.analysis.layers import layer_kinds
from layerlens.errors import OptionError, RunError, did_you_mean, spelled, spelled_command
from layerlens.records.reader import Records
from layerlens.records.schema import CONFIDENCE, JS, KL, NEXT_RANK, TOP_K_PROBS, TOP_K_TOKEN_IDS, VOCAB_CONFIDENCE

BUDGET = 4_300_000
STEPS = (65535, 255, 127)
TOKENS_SHOWN = 4096
COLOURED = (0.02, 0.98)
FIRST_WORDS = (20, 10, 5, 3)
PROB_STEPS = 255
BEGINNING = 100

_NONE = -1

Array = np.ndarray[Any, np.dtype[Any]]
Packed = dict[str, Any]
Curve = Callable[[Array], Array]

_CURVES: dict[str, tuple[str, Curve, Curve]] = {
    "entropy": ("square", np.sqrt, np.square),
    "norm_ratio": ("exponential", lambda x: np.log1p(100 * x), lambda x: np.expm1(x) / 100),
    "io_cosine": ("straight", np.positive, np.positive),
    "top_prob": ("straight", np.positive, np.positive),
    NEXT_RANK.name: ("logarithm", np.log1p, np.expm1),
    JS.name: ("square", np.sqrt, np.square),
    KL.name: ("square", np.sqrt, np.square),
    CONFIDENCE.name: ("straight", np.positive, np.positive),
    VOCAB_CONFIDENCE.name: ("straight", np.positive, np.positive),
}
_ZERO_IS_PALE = ("entropy", NEXT_RANK.name, JS.name, KL.name)


def pack(run: Records, prompt_ids: Sequence[str] | None = None, budget: float | None = None) -> Packed:
    """Everything that the explorer shows, ready for `json.dumps`. It has about the size of the budget at most, unless a
    single prompt has more.

    The first 4,096 positions of a prompt are held. If not all prompts fit even with the fewest steps, the first ones
    are held that do, and "prompts_left_out" counts the others. Measures that the run was asked for are held too: the
    probability of each layer's top token, the rank of the token that followed, a divergence, and the first tokens of
    each layer. If there is no room for all first tokens, fewer per layer are held, or only those of the first prompts.

    Args:
        run: what was traced.
        prompt_ids: which prompts to hold, in this order; by default all of them.
        budget: in bytes; by default `BUDGET`.

    Raises:
        OptionError: no prompt of such an id was traced, or the list of ids is empty.
        RunError: the run holds no complete prompt.
    """
    budget = BUDGET if budget is None else budget
    ids = traced_ids(run, prompt_ids)
    n_prompts, names = len(ids), _measured(run)
    n_cells = np.cumsum([min(run.lengths[name], TOKENS_SHOWN) * run.n_layers for name in ids])
    fitting = max(1, int((n_cells <= _most_cells(STEPS[-1], len(names), budget)).sum()))
    run = run.of_prompts(ids[:fitting])  # the states of a long run need more memory than there is
    rows_of, values = _rows_by_prompt(run, ids[:fitting]), {name: _values(run, name) for name in names}
    words = _words(run, np.concatenate(list(rows_of.values())))
    for steps in STEPS:
        # half of the room is for the first tokens, unless everything else takes more
        room = budget / 2 if run.has(TOP_K_PROBS.name) and steps != STEPS[-1] else budget
        if n_cells[fitting - 1] <= _most_cells(steps, len(values), room) or steps == STEPS[-1]:
            packed = _packed(run, rows_of, values, words, steps)
            if _size(packed) <= room:
                break
    excess = _size(packed) - budget
    while len(packed["prompts"]) > 1 and excess > 0:
        excess -= _size(packed["prompts"].pop()) + len(", ")
    if run.has(TOP_K_PROBS.name):
        held = [rows_of[prompt["id"]] for prompt in packed["prompts"]]
        _add_first_words(packed, run, held, words, budget - _size(packed))
    return packed | {"prompts_left_out": n_prompts - len(packed["prompts"])}


def traced_ids(run: Records, prompt_ids: Sequence[str] | None) -> list[str]:
    """The prompts that were asked for, or all that have positions; OptionError or RunError where there is none."""
    traced = run.lengths
    if not traced:
        advice = f"continue {spelled_command('trace')} with {spelled('resume', True)} until a prompt is complete"
        raise RunError(f"{run.path} holds no complete prompt", advice, given=run.path)
    wanted = list(traced) if prompt_ids is None else list(prompt_ids)
    unknown = [name for name in wanted if name not in traced]
    if unknown or not wanted:
        given = f"no prompt {unknown[0]!r}" if unknown else "prompts, but the list of their ids is empty"
        advice = "choose from run.prompts['prompt_id']"
        advice = did_you_mean(unknown[0], traced, advice) if unknown else advice
        raise OptionError(f"{run.path} traced {given}", advice, option="prompt_ids", given=prompt_ids)
    return wanted


def _rows_by_prompt(run: Records, ids: Sequence[str]) -> dict[str, Array]:
    """The first rows of `run.positions` of each prompt, in the order of its positions."""
    rows: dict[str, Array] = run.positions.groupby("prompt_id", sort=False).indices  # type: ignore[assignment]
    position = run.positions["position"].to_numpy()
    return {name: rows[name][np.argsort(position[rows[name]], kind="stable")][:TOKENS_SHOWN] for name in ids}


def _measured(run: Records) -> list[str]:
    """The measures of the run that can colour."""
    divergences = [column.name for column in (JS, KL) if run.has(column.name)][:1]
    found = {"entropy", "norm_ratio", "io_cosine", *divergences}
    found |= {"top_prob"} if run.has(TOP_K_PROBS.name) else set()
    found |= {column.name for column in (NEXT_RANK, CONFIDENCE, VOCAB_CONFIDENCE) if run.has(column.name)}
    return [name for name in _CURVES if name in found]


def _values(run: Records, name: str) -> Array:
    """A measure that can colour, [positions, L]."""
    if name == "top_prob":
        return run.layers(TOP_K_PROBS.name)[:, :, 0]
    values = run.layers(name)
    return np.where(values < 0, np.nan, values) if name == NEXT_RANK.name else values


def _words(run: Records, rows: Array) -> Array:
    """Every id that occurs in some rows, except the first tokens of layers. Frequent ids come first, because small
    codes deflate well."""
    ids = [run.layers("top_token_id")[rows].ravel()]
    ids += [run.positions[name].fillna(_NONE).to_numpy(np.int64)[rows] for name in ("token_id", "next_token_id")]
    distinct, counts = np.unique(np.concatenate(ids), return_counts=True)
    ordered = distinct[np.argsort(-counts, kind="stable")]
    words: Array = ordered[ordered != _NONE]
    return words


def _most_cells(steps: int, n_measures: int, room: float) -> float:
    """The most states of a layer that can fit. Deflating hardly makes their measures shorter."""
    return room * 0.75 / (n_measures * 0.9 * log2(steps + 1) / 8)


def _packed(run: Records, rows_of: dict[str, Array], values: dict[str, Array], words: Array, steps: int) -> Packed:
    every = np.concatenate(list(rows_of.values()))
    frame, top = run.positions, run.layers("top_token_id")
    ids = {name: frame[name].fillna(_NONE).to_numpy(np.int64) for name in ("token_id", "next_token_id")}
    codes = _codes(words)
    measures = {name: _measure(name, of_layer[every], steps) for name, of_layer in values.items()}
    small = {"position": np.int32, "is_generated": np.uint8, "perturbed": np.uint8}
    small |= {"valley_layer": np.uint16, "selected_layer": np.uint16}
    described = run.prompts.drop_duplicates("prompt_id").set_index("prompt_id")
    lengths = frame.groupby("prompt_id").size()
    texts_of = [
        {name: _text(described.at[prompt_id, name]) for name in ("prompt", "reference")} for prompt_id in rows_of
    ]
    beginnings = distinct_beginnings([texts["prompt"] or "" for texts in texts_of])
    prompts = []
    for (prompt_id, rows), texts, begins in zip(rows_of.items(), texts_of, beginnings, strict=True):
        columns: dict[str, Array] = {name: frame[name].to_numpy()[rows].astype(kind) for name, kind in small.items()}
        columns |= {name: codes[column[rows]] for name, column in ids.items()}
        columns |= {"top_token_id": codes[top[rows]]}
        columns |= {name: _in_steps(name, values[name][rows], measures[name], steps) for name in values}
        prompts.append(
            {
                "id": prompt_id,
                "begins": begins,
                "finish": str(described.at[prompt_id, "finish_reason"]),
                "n_tokens": len(rows),
                "n_left_out": int(lengths[prompt_id]) - len(rows),
                "texts": deflated(json.dumps(texts).encode()),
                "columns": {name: [str(column.dtype), deflated(column.tobytes())] for name, column in columns.items()},
            }
        )
    return {
        "n_layers": run.n_layers,
        "kinds": layer_kinds(run),
        "window": int(run.manifest["window"]),
        "earliest": int(frame[["valley_layer", "selected_layer"]].to_numpy()[every].min()),
        "steps": steps,
        "measures": measures,
        "words": deflated(json.dumps(["", *run.text_of(words)]).encode()),
        "prompts": prompts,
    }


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def distinct_beginnings(texts: Sequence[str]) -> list[str]:
    """The beginning of each text in one line of at most `BEGINNING` characters and "…", to tell texts apart.

    A beginning that all texts share is left out, and so is a long end: a template, or examples before a question.
    The line in which the texts differ is shown from its first character, unless the shared part of it is long.
    """
    prefix = suffix = ""
    if len(texts) > 1:
        prefix = _shared_beginning(texts)
        suffix = _shared_beginning([text[len(prefix) :][::-1] for text in texts])
    line, word = (len(re.sub(rf"{inside}*\Z", "", prefix)) for inside in (".", r"\S"))
    start = line if len(prefix) - line <= BEGINNING // 2 else word
    left_out = len(suffix) if len(suffix) >= BEGINNING // 5 else 0
    said = [" ".join(text[start : len(text) - left_out].split()) or " ".join(text.split()) for text in texts]
    return [text if len(text) <= BEGINNING else text[:BEGINNING].rstrip() + "…" for text in said]


def _shared_beginning(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)  # in alphabetical order: whatever these share, all between them share
    pairs = enumerate(zip(first, last, strict=False))
    return first[: next((at for at, (one, other) in pairs if one != other), len(first))]


def _codes(words: Array) -> Array:
    """For each token id its place in `words`, from 1, or 0. The last code is 0 too, for "no token", whose id is -1."""
    codes = np.zeros(int(words.max(initial=_NONE)) + 2, np.uint16 if len(words) < 2**16 else np.uint32)
    codes[words] = np.arange(1, len(words) + 1)
    return codes


def _measure(name: str, values: Array, steps: int) -> Packed:
    """How the steps of a measure are read and coloured.

    low, high: the ends of its curve, by layer; pale, strong: the values between which colours run, the 2nd and 98th
    percentile of each layer (for entropy, rank and divergence, 0 is the palest); error: the most by which 99 % of the
    values are off.
    """
    curve, bent, straight = _CURVES[name]
    ends = np.zeros((4, values.shape[1]))
    for layer, column in enumerate(values.T):
        finite = column[np.isfinite(column)].astype(np.float64)
        if len(finite):
            ends[:2, layer] = bent(np.array([finite.min(), finite.max()]))
            ends[2:, layer] = np.quantile(finite, COLOURED)
    if name in _ZERO_IS_PALE:
        ends[2] = 0
    measure: Packed = {"curve": curve}
    measure |= {key: row.tolist() for key, row in zip(("low", "high", "pale", "strong"), ends, strict=True)}
    low, high = ends[:2]
    held = straight(low + (high - low) * _in_steps(name, values, measure, steps) / (steps - 1))
    errors = np.abs(held - values)[np.isfinite(values)]
    return measure | {"error": float(np.quantile(errors, 0.99, method="higher")) if len(errors) else 0.0}


def _in_steps(name: str, values: Array, measure: Packed, steps: int) -> Array:
    """The step of each value, 0 .. steps - 1; `steps` where it is not finite."""
    low, high = np.asarray(measure["low"]), np.asarray(measure["high"])
    finite = np.isfinite(values)
    along = (_CURVES[name][1](np.where(finite, values, 0.0)) - low) / np.where(high > low, high - low, 1)
    step = np.where(finite, np.rint(np.clip(along, 0, 1) * (steps - 1)), steps)
    return step.astype(np.uint16 if steps > 255 else np.uint8)


def _add_first_words(packed: Packed, run: Records, rows_of: list[Array], words: Array, room: float) -> None:
    """Give every prompt the first tokens of each layer with their probabilities, as many of them as there is room for.

    The page's "first_words" holds their number k, and the texts that are not among the other words, whose codes these
    continue. A prompt's "first_words" holds the codes, and the steps (`PROB_STEPS` where not finite) of the square
    roots of the probabilities, [tokens, L, k] each. If three are too many for all prompts, the last prompts have none.
    """
    ids, probs = run.layers(TOP_K_TOKEN_IDS.name), run.layers(TOP_K_PROBS.name)
    n_tops = ids.shape[2]
    for k in sorted({min(k, n_tops) for k in FIRST_WORDS}, reverse=True):
        further = np.setdiff1d(ids[np.concatenate(rows_of), :, :k], np.append(words, _NONE))
        codes = _codes(np.concatenate([words, further]))
        held = [_first_words_of(codes[ids[rows, :, :k]], probs[rows, :, :k]) for rows in rows_of]
        about: Packed = {"k": k, "words": deflated(json.dumps(run.text_of(further)).encode())}
        excess = sum(map(_size, held)) + _size(about) - room
        if excess <= 0:
            break
    while held and excess > 0:
        excess -= _size(held.pop())
    if held:
        packed["first_words"] = about
    for prompt, first_words in zip(packed["prompts"], held, strict=False):
        prompt["first_words"] = first_words


def _first_words_of(codes: Array, probs: Array) -> list[str]:
    finite = np.isfinite(probs)
    steps = np.rint(np.sqrt(np.where(finite, np.clip(probs, 0, 1), 0)) * (PROB_STEPS - 1))
    steps = np.where(finite, steps, PROB_STEPS).astype(np.uint8)
    return [str(codes.dtype), deflated(codes.tobytes()), deflated(steps.tobytes())]


def deflated(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content)).decode("ascii")


def _size(packed: object) -> int:
    return len(json.dumps(packed))
