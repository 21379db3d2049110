"""Which tokens decoding from the valley would change, or another layer did change (Table 8 of arXiv 2606.21906).

A *substitution* is a generated token at which the readout of the valley layer ranks another token first than that of
layer L. Decoding from the valley replaces the token there, or would have replaced it: runs decoded from the last layer
have substitutions as well as runs decoded from the valley. The *standard* token is the last layer's first choice. The
*confident* token is the valley layer's first choice. Tables call the two methods "last" and "confident", as the paper's
reported values do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from layerlens.analysis.sample import Bools, Gathered, Prompts, Sample, counted_pieces, generated, sample
from layerlens.analysis.shares import share_interval
from layerlens.errors import OptionError, RunError, did_you_mean, spelled
from layerlens.records.reader import Records

METHODS = ("last", "confident")

Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Choices:
    """The first choices of the last layer and of the valley layer, for every generated token.

    Attributes:
        tokens: the generated tokens, by prompt and within a prompt by position.
        last: the last layer's first choice, a token id, [tokens].
        confident: the valley layer's first choice, a token id, [tokens].
    """

    tokens: Sample
    last: Ints
    confident: Ints

    @property
    def substituted(self) -> Bools:
        """Which tokens are substitutions, [tokens]: those for which the two first choices differ."""
        differ: Bools = np.not_equal(self.last, self.confident)
        return differ


def choices(run: Records, by: str = "valley") -> Choices:
    """The first choices of last layer and valley for all generated tokens that count; RunError where there are none.

    With "selected", the layer that was decoded from takes the place of the valley layer.
    """
    return choices_among(run, generated(run), by)


def choices_among(run: Records, tokens: Sample, by: str = "valley") -> Choices:
    """The same for some of the generated tokens."""
    top = run.layers("top_token_id")
    valley = run.positions[f"{by}_layer"].to_numpy(dtype=np.int64)[tokens.rows]
    last, confident = (top[tokens.rows, layers - 1].astype(np.int64) for layers in (run.n_layers, valley))
    return Choices(tokens, last, confident)


@dataclass(frozen=True)
class Substituted(Prompts):
    """The substitutions of a run, without its other tokens.

    Attributes:
        n_prompts, left_out: see `Prompts`.
        n_tokens: how many generated tokens were looked at.
        prompt: the prompt of each, as its place in the order of prompt ids, [substitutions].
        last, confident: the two first choices, [substitutions] each.
    """

    n_prompts: int
    left_out: int
    n_tokens: int
    prompt: Ints
    last: Ints
    confident: Ints

    def shares(self, codes: Ints, n: int) -> dict[str, Any]:
        """Shares of the codes 0..n-1 among the substitutions: share with `_low` and `_high`, and n_prompts, [n] each.

        Args:
            codes: one for each substitution, [substitutions].
            n: how many codes there are.
        """
        counts = np.zeros((self.n_prompts, n))
        np.add.at(counts, (self.prompt, codes), 1)
        share, low, high = share_interval(counts, counts.sum(axis=1, keepdims=True), self.weights)
        return {"share": share, "share_low": low, "share_high": high, "n_prompts": (counts > 0).sum(axis=0)}


def substituted(run: Records) -> Substituted:
    """The substitutions of a run; RunError where there is none."""
    ids, parts, n_prompts, n_tokens, left_out = [], [], 0, 0, 0
    for piece, tokens in counted_pieces(run, generated):
        first_choices = choices_among(piece, tokens)
        among = first_choices.substituted
        prompt = n_prompts + np.repeat(np.arange(tokens.n_prompts), np.diff([*tokens.starts, len(among)]))[among]
        parts.append(np.stack([prompt, first_choices.last[among], first_choices.confident[among]]).astype(np.int32))
        ids.append(tokens.prompt_ids(piece))
        n_prompts, n_tokens, left_out = n_prompts + tokens.n_prompts, n_tokens + len(tokens.rows), tokens.left_out
    prompt, last, confident = np.concatenate(parts, axis=1)
    if not len(prompt):
        raise no_substitution(run, n_tokens)
    place = np.argsort(np.argsort(np.concatenate(ids), kind="stable"), kind="stable")
    return Substituted(n_prompts, left_out, n_tokens, place[prompt], last, confident)


def substitutions(run: Records) -> pd.DataFrame:
    """One row per substitution: a generated token at which the valley layer ranks another token first than layer L.

    These are the events that `substitution_pairs` and `valley_statistics` count, whichever layer the run was decoded
    from; `replacements` lists what the run's own strategy did.

    Columns: prompt_id; position; last_token_id, the last layer's first choice; valley_token_id, the valley layer's;
    emitted_token_id, what followed; valley_layer; selected_layer, the one that was decoded from; entropy_valley and
    entropy_last, in nats at the two layers. `attrs["n_tokens"]` is the number of tokens that were looked at.

    Raises:
        RunError: no token was generated that can be counted.
    """
    return _rows(run, generated, "valley")


def replacements(run: Records) -> pd.DataFrame:
    """One row per replacement: a token whose selected layer ranks another token first than the last layer does.

    The selected layer is the one whose logits the sampler got. Where a run was decoded from the valley at every token,
    without a shift and with the trace's window, its replacements are its substitutions. A run whose selected layer is
    always the last has none.

    Columns: prompt_id; position; last_token_id, the last layer's first choice; selected_token_id, the selected layer's;
    emitted_token_id, what followed (NA where nothing did; under sampling it may be neither); selected_layer;
    entropy_selected and entropy_last, in nats at the two layers. `attrs["n_tokens"]` is the number of tokens that were
    looked at.

    Raises:
        RunError: no token of the run can be counted.
    """
    return _rows(run, sample, "selected")


def substitution_pairs(run: Records, k: int = 20) -> pd.DataFrame:
    """The k most frequent substitutions of one token by another, most frequent first; ties are ordered by token ids.

    Columns: standard_token_id and standard, the last layer's first choice and its text; confident_token_id and
    confident, the valley layer's first choice and its text; count; share of all substitutions (0..1) with `_low` and
    `_high` (95 %, prompts resampled); n_prompts in which the pair occurs; n_substitutions. Only generated tokens are
    counted; a substitution is defined by the valley, whichever layer the run was decoded from. `attrs["n_tokens"]` is
    the number of tokens that were looked at.

    Raises:
        OptionError: k is below 1.
        RunError: no token was generated, or none is a substitution.
    """
    pairs = substituted(run)
    ids = np.stack([pairs.last, pairs.confident], axis=1)
    ranked, columns = _most_frequent(pairs, ids, k)
    texts = {
        f"{name}{part}": values
        for name, side in zip(("standard", "confident"), ranked.T, strict=True)
        for part, values in (("_token_id", side), ("", run.text_of(side)))
    }
    return table_of(pairs, texts | columns, len(pairs.last))


def substituted_tokens(run: Records, method: str, k: int = 20) -> pd.DataFrame:
    """The k tokens that one method ranks first most often where the two methods differ; ties are ordered by token id.

    Columns: token_id; token, its text; count; share of all substitutions (0..1) with `_low` and `_high` (95 %, prompts
    resampled); n_prompts in which it occurs; n_substitutions. Only generated tokens are counted.

    Args:
        run: the run.
        method: "last" for the standard tokens, "confident" for the confident ones.
        k: how many.

    Raises:
        OptionError: there is no such method, or k is below 1.
        RunError: no token was generated, or none is a substitution.
    """
    if method not in METHODS:
        advice = did_you_mean(method, METHODS, f"choose from {', '.join(METHODS)}")
        raise OptionError(f"there is no method {method!r}", advice, option="method", given=method)
    pairs = substituted(run)
    ranked, columns = _most_frequent(pairs, getattr(pairs, method)[:, None], k)
    return table_of(pairs, {"token_id": ranked[:, 0], "token": run.text_of(ranked[:, 0])} | columns, len(pairs.last))


def _rows(run: Records, tokens_of: Callable[[Records], Sample], by: str) -> pd.DataFrame:
    """The tokens at which the first choice of the layer "valley" or "selected" differs from the last layer's."""
    tables, n_prompts, n_tokens, left_out = [], 0, 0, 0
    for piece, tokens in counted_pieces(run, tokens_of):
        tables.append(_of_piece(piece, tokens, by))
        n_prompts, n_tokens = n_prompts + tokens.n_prompts, n_tokens + len(tokens.rows)
        left_out = tokens.left_out
    table: pd.DataFrame = pd.concat(tables, ignore_index=True)
    table.attrs = {"n_prompts": n_prompts, "n_prompts_left_out": left_out, "n_tokens": n_tokens}
    return table


def _of_piece(run: Records, tokens: Sample, by: str) -> pd.DataFrame:
    layer = run.positions[f"{by}_layer"].to_numpy(dtype=np.int64)
    top = run.layers("top_token_id")
    differs = top[np.arange(len(layer)), layer - 1] != top[:, -1]
    rows = np.sort(tokens.rows[differs[tokens.rows]])
    positions = run.positions.iloc[rows]
    entropy = run.layers("entropy")
    columns: dict[str, Any] = {
        "prompt_id": positions["prompt_id"].to_numpy(),
        "position": positions["position"].to_numpy(),
        "last_token_id": top[rows, -1],
        f"{by}_token_id": top[rows, layer[rows] - 1],
        "emitted_token_id": positions["next_token_id"].astype("Int64").to_numpy(),
        f"{by}_layer": layer[rows],
    }
    columns["selected_layer"] = positions["selected_layer"].to_numpy(dtype=np.int64)
    columns |= {f"entropy_{by}": entropy[rows, layer[rows] - 1], "entropy_last": entropy[rows, -1]}
    table: pd.DataFrame = pd.DataFrame(columns)
    return table


def _most_frequent(pairs: Substituted, ids: Ints, k: int) -> tuple[Ints, dict[str, Any]]:
    """The k most frequent rows of ids [substitutions, ...], [k, ...], and their counts and shares."""
    if k < 1:
        raise OptionError(f"k is {k}", "give k of at least 1", option="k", given=k)
    distinct, which, counts = np.unique(ids, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:k]  # np.unique sorts by id, which orders ties
    code_of = np.full(len(distinct), len(order))
    code_of[order] = np.arange(len(order))
    shares = pairs.shares(code_of[which.reshape(-1)], len(order) + 1)
    columns = {"count": counts[order]} | {name: values[: len(order)] for name, values in shares.items()}
    return distinct[order], columns | {"n_substitutions": len(ids)}


def no_substitution(run: Records, n_tokens: int) -> RunError:
    """The error for a run without a substitution among so many generated tokens."""
    return RunError(
        f"{run.path} has no substitution: at none of its {n_tokens:,} generated tokens does the "
        "valley rank another token first than the last layer",
        f"trace more tokens, or with a larger {spelled('window')}",
        given=run.path,
    )


def table_of(prompts: Substituted | Gathered, rows: Any, n_substitutions: int) -> pd.DataFrame:
    """The rows as a table, with the numbers of prompts, tokens and substitutions in `attrs`."""
    table = prompts.frame(rows)
    table.attrs |= {"n_substitutions": n_substitutions, "n_tokens": prompts.n_tokens}
    return table
