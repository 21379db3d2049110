"""What kinds of words decoding from the valley would change (Table 8 of arXiv 2606.21906)."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from layerlens.analysis.sample import Bools, PerPrompt, Sample, gathered, generated
from layerlens.analysis.substitutions import METHODS, Ints, choices_among, no_substitution, table_of
from layerlens.analysis.words import CLASSES, FREQUENCY_BANDS, frequency_band, whole_words, word_class
from layerlens.errors import OptionError, RunError, did_you_mean, spelled
from layerlens.records.reader import Records

_KINDS: dict[str, tuple[tuple[str, ...], Callable[[str], str]]] = {
    "class": (CLASSES, word_class),
    "own class": (CLASSES, partial(word_class, rule="own")),
    "frequency": (FREQUENCY_BANDS, frequency_band),
}


def class_shares(run: Records, whole_words: bool = False, by: str = "class") -> pd.DataFrame:
    """How large a share each kind of word has among standard tokens, confident tokens and all generated tokens.

    Columns: method ("last" and "confident", the two sides of the substitutions, and "generated", what the model
    emitted); condition, the kind of word; share (0..1) with `_low` and `_high` (95 %, prompts resampled); n_tokens, of
    which this is a share; n_prompts that have such tokens. Method and condition are named as in the reported values.

    Args:
        run: the run.
        whole_words: judge each token by the word that it is a part of, rather than by its own text. The emitted tokens
            before it complete the word. Those after it do so only where the token itself was emitted, because what
            would have followed another token is not known.
        by: "class" for the classes of `word_class` by its rule "paper", "own class" for those by its rule "own",
            "frequency" for the bands of `frequency_band`.

    Raises:
        OptionError: `by` is none of these, or wordfreq is not installed.
        RunError: no token was generated, none is a substitution, or the run does not hold its tokens' texts.
    """
    if by not in _KINDS:
        advice = did_you_mean(by, _KINDS, f"choose from {', '.join(_KINDS)}")
        raise OptionError(f"words cannot be sorted by {by!r}", advice, option="by", given=by)
    labels, classify = _KINDS[by]

    def sums_of(piece: Records, tokens: Sample) -> dict[str, PerPrompt]:
        refuse_without_texts(run)
        first_choices = choices_among(piece, tokens)
        emitted = piece.positions["next_token_id"].iloc[tokens.rows].to_numpy(dtype=np.int64)
        sides = {
            "last": (first_choices.last, first_choices.substituted),
            "confident": (first_choices.confident, first_choices.substituted),
        }
        sides["generated"] = (emitted, np.ones(len(emitted), dtype=bool))
        sums = {}
        for method, (ids, among) in sides.items():
            if whole_words:
                which, words = _distinct(_words_in_place(run, tokens, emitted, ids, among))
            else:
                which, distinct = pd.factorize(ids[among])
                words = run.text_of(distinct)
            kinds = np.array([labels.index(classify(word)) for word in words], dtype=np.int64)
            flags = np.zeros((len(ids), len(labels)), dtype=bool)
            flags[np.flatnonzero(among), kinds[which]] = True
            sums[method] = tokens.per_prompt(flags, among)
        return sums

    totals = gathered(run, sums_of, generated)
    n_substitutions = totals["last"].n_tokens
    if not n_substitutions:
        raise no_substitution(run, totals.n_tokens)
    rows = []
    for method, per_prompt in totals.by_name.items():
        for label, share, low, high in zip(labels, *totals.estimate(per_prompt), strict=True):
            row: dict[str, Any] = {"method": method, "condition": label}
            row |= {"share": share, "share_low": low, "share_high": high}
            rows.append(row | {"n_tokens": per_prompt.n_tokens, "n_prompts": per_prompt.n_prompts})
    return table_of(totals, rows, n_substitutions)


def substituted_classes(run: Records, whole_words: bool = False, by: str = "class") -> pd.DataFrame:
    """The rows of the paper's Table 8 for this run, named as in the reported values of source 8.

    Columns: method; condition; quantity; value, with value_low and value_high (95 %, prompts resampled; NaN for
    counts); n_tokens; n_prompts. Quantities: "percent of substituted tokens" (0..100) for each method and word class;
    "substitutions" and "tokens", the counts, with empty method and condition. The arguments are those of
    `class_shares`; "class" stands for the classes of the paper.

    Raises:
        OptionError, RunError: as `class_shares`.
    """
    shares = class_shares(run, whole_words, by)
    shares = shares[shares["method"].isin(METHODS)]
    table = pd.DataFrame({"method": shares["method"], "condition": shares["condition"]})
    table["quantity"] = "percent of substituted tokens"
    for name in ("value", "value_low", "value_high"):
        table[name] = 100 * shares[name.replace("value", "share")]
    table = table.assign(n_tokens=shares["n_tokens"], n_prompts=shares["n_prompts"])
    counts = pd.DataFrame({"method": "", "condition": "", "quantity": ["substitutions", "tokens"]})
    counts["value"] = [float(shares.attrs["n_substitutions"]), float(shares.attrs["n_tokens"])]
    counts = counts.assign(value_low=np.nan, value_high=np.nan, n_tokens=shares.attrs["n_tokens"])
    counts["n_prompts"] = shares.attrs["n_prompts"]
    both: pd.DataFrame = pd.concat([table, counts], ignore_index=True)
    both.attrs = shares.attrs
    return both


def refuse_without_texts(run: Records) -> None:
    """RunError where a run lacks the texts of its tokens: it is not complete, or an earlier version traced it."""
    if run.words.empty:
        advice = "trace it again" if run.is_complete else f"continue it with {spelled('resume', True)}"
        raise RunError(
            f"{run.path} lacks the texts of its tokens (words.parquet), which complete runs of this version have",
            advice,
            given=run.path,
        )


def _words_in_place(run: Records, tokens: Sample, emitted: Ints, ids: Ints, among: Bools) -> list[str]:
    """The whole word of every id among some tokens, each put in its place in what was emitted for the prompt."""
    texts, own = run.text_of(emitted), iter(run.text_of(ids[among]))
    words = []
    for start, end in pairwise([*tokens.starts.tolist(), len(ids)]):
        said = texts[start:end]
        standing = whole_words(said)
        for at in np.flatnonzero(among[start:end]).tolist():
            text = next(own)
            as_emitted = ids[start + at] == emitted[start + at]
            words.append(standing[at] if as_emitted else whole_words([*_word_begun(said, at), text])[-1])
    return words


def _distinct(texts: list[str]) -> tuple[Ints, list[str]]:
    """The index of each text among the distinct texts, [texts], and the distinct texts."""
    place: dict[str, int] = {}
    which = np.array([place.setdefault(text, len(place)) for text in texts], dtype=np.int64)
    return which, list(place)


def _word_begun(texts: Sequence[str], at: int) -> Sequence[str]:
    """The texts before this one, from the last one that begins with white space on."""
    begin = max(0, at - 1)
    while begin > 0 and not texts[begin][:1].isspace():
        begin -= 1
    return texts[begin:at]
