"""Which words decoding from the valley would change, and what kinds of words they are (Table 8 of arXiv 2606.21906).

A *substitution* is a generated token at which the readout of the valley layer ranks another token first than that of
layer L. It is what decoding from the valley does, or would have done: runs decoded from the last layer have
substitutions as well as runs decoded from the valley. Its *standard* token is the last layer's first choice, its
*confident* token the valley's; tables call the two methods "last" and "confident", as the paper's reported values do.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from layerlens.analysis.sample import Bools, Gathered, PerPrompt, Prompts, Sample, counted_pieces, gathered, generated
from layerlens.analysis.shares import share_interval
from layerlens.errors import OptionError, RunError
from layerlens.records.reader import Records
from layerlens.sources.shipped import shipped_file

CLASSES = ("content", "function", "punctuation", "other")
BANDS = (
    "zipf 6 and above",
    "zipf 5 to 6",
    "zipf 4 to 5",
    "zipf 3 to 4",
    "zipf below 3",
    "not in the corpus",
    "no word",
)
METHODS = ("last", "confident")
RULES = ("paper", "own")

Ints = np.ndarray[Any, np.dtype[np.int64]]


def word_class(text: str, rule: str = "paper") -> str:
    """The class of a text that is one token or one word: "content", "function", "punctuation" or "other".

    White space around the text is dropped, case is folded, and the typographic apostrophe counts as the straight one.

    - punctuation: every character is punctuation to Unicode (P*), which takes in * # / % & @ \\ _ but not + = < >. By
      the rule "paper" the dollar sign is one of them, and so is white space alone that breaks a line.
    - function: the word is on the shipped list of closed classes (`closed_class`), or the part before its apostrophe
      is ("it's").
    - content: any other word.
    - other: the rest: spaces, digits, symbols, single letters that are no word (x, B), code, special tokens,
      pieces of a character.

    A word consists of letters, with single apostrophes or hyphens between them. Opening brackets and quotes before it
    and closing ones or . , ; : ! ? … after it are passed over; with anything else attached (`x1`, `\\frac`, `.append`)
    a text counts as code. An identifier of letters alone looks like a word and counts as one.

    The paper gives no rule for its classes. In the column of Table 8 for its instruct model $ alone is 8.2 % of the
    last layer's words and "other" 4 %, so it must have counted $ as punctuation; the rule "paper" reads line breaks,
    which set off a text as $ does, in the same way. By the rule "own" both are other, as Unicode has them.

    Raises:
        OptionError: no such rule.
    """
    if rule not in RULES:
        raise OptionError(f"there is no rule {rule!r} for word classes; choose from {', '.join(RULES)}")
    given = text.strip().casefold().replace("’", "'")
    by_paper = rule == "paper"
    if given and all(_category(character) == "P" or (by_paper and character == "$") for character in given):
        return "punctuation"
    if by_paper and not given and len(f"{text}.".splitlines()) > 1:
        return "punctuation"
    word = given if given in closed_class() else _without_marks(given)
    if not _is_word(word) and word not in closed_class():
        return "other"
    if word in closed_class() or word.split("'")[0] in closed_class():
        return "function"
    is_lone_letter = len(word) == 1 and word != word.upper()
    return "other" if is_lone_letter else "content"


@cache
def closed_class() -> frozenset[str]:
    """The function words that come with layerlens, in small letters; English only."""
    lines = shipped_file("closed_class.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in line.split())


def frequency_band(text: str) -> str:
    """How frequent a word is in English at large, as a band of its Zipf value; one of `BANDS`.

    The Zipf value is the decimal logarithm of occurrences in a billion words, as the package wordfreq counts them: 7.7
    for "the", 4.7 for "valley". A band holds its lower bound. What `word_class` calls punctuation or other is no word.

    Raises:
        OptionError: wordfreq is not installed.
    """
    if word_class(text) not in ("content", "function"):
        return "no word"
    try:
        from wordfreq import zipf_frequency
    except ImportError as error:
        raise OptionError("bands of word frequency need the package wordfreq: pip install wordfreq") from error
    zipf = zipf_frequency(_without_marks(text.strip().replace("’", "'")), "en")
    if zipf == 0:
        return "not in the corpus"
    return BANDS[6 - min(6, max(2, int(zipf)))]


def whole_words(texts: Sequence[str]) -> list[str]:
    """The whole word that each token of a text stands in; its own text where it stands in none, or fills one.

    The texts follow each other as generated. A word is an unbroken run of letters, digits and pieces of characters,
    with single apostrophes in it ("don't", "o'clock"), so that a token continues the word before it unless one of the
    two has white space, punctuation or a symbol where they meet. Characters twice as wide as Latin ones (Chinese,
    Japanese, Korean) are words of their own. Of several words in one token the first counts.
    """
    joined = "".join(texts)
    kinds = joined.translate({ord(character): _kind(character) for character in set(joined)})
    words = [match.span() for match in _WORD.finditer(kinds)]
    found, at = [], 0
    for start, end in pairwise(np.cumsum([0, *map(len, texts)]).tolist()):
        while at < len(words) and words[at][1] <= start:
            at += 1
        inside = start < end and at < len(words) and words[at][0] < end
        begins, ends = words[at] if inside else (start, end)
        found.append(joined[begins:ends] if begins < start or ends > end else joined[start:end])
    return found


def whole_word_classes(texts: Sequence[str], rule: str = "paper") -> list[str]:
    """The class of each token's whole word, by `whole_words` and `word_class`, for tokens that follow each other."""
    return [word_class(word, rule) for word in whole_words(texts)]


def visible(text: str, can_show: Callable[[str], bool] = str.isprintable) -> str:
    """A token's text with nothing in it that cannot be seen, for labels.

    Spaces around it are dropped; where there is nothing else, each is shown as ␣. A line feed is shown as ⏎, a tab as
    ⇥, four or more of the same sign in a row as ⏎×4, an empty text as ∅. Every other character that is not printable,
    or that `can_show` refuses, and the third and further accents on one letter, are shown as codes: \\x1b, \\u4e2d.
    """
    if not text:
        return "∅"
    stripped = text.strip(" ")
    signed = "".join(_SIGNS.get(character, character) for character in (stripped or text.replace(" ", "␣")))
    counted = _REPEATED.sub(lambda run: f"{run[1]}×{len(run[0])}", signed)
    shown, accents = "", 0
    for character in counted:
        accents = accents + 1 if _category(character) == "M" else 0
        seen = character.isprintable() and can_show(character) and accents <= _MOST_ACCENTS
        shown += character if seen else character.encode("unicode_escape").decode()
    return shown


@dataclass(frozen=True)
class Choices:
    """What the last layer and the valley ranked first, for every generated token.

    Attributes:
        tokens: the generated ones, by prompt and within a prompt by position.
        last: the last layer's first choice, a token id, [tokens].
        confident: the valley layer's, [tokens].
    """

    tokens: Sample
    last: Ints
    confident: Ints

    @property
    def substituted(self) -> Bools:
        """Which tokens are substitutions, [tokens]: those on which the two disagree."""
        differ: Bools = np.not_equal(self.last, self.confident)
        return differ


def choices(run: Records) -> Choices:
    """The first choices of last layer and valley for all generated tokens that count; RunError where there are none."""
    return choices_among(run, generated(run))


def choices_among(run: Records, tokens: Sample) -> Choices:
    """The same, of some of the generated tokens."""
    top = run.layers("top_token_id")
    valley = run.positions["valley_layer"].to_numpy(dtype=np.int64)[tokens.rows]
    last, confident = (top[tokens.rows, layers - 1].astype(np.int64) for layers in (run.n_layers, valley))
    return Choices(tokens, last, confident)


def _no_substitution(run: Records, n_tokens: int) -> RunError:
    return RunError(
        f"{run.path} has no substitution: at none of its {n_tokens:,} generated tokens does the "
        "valley rank another token first than the last layer; trace more tokens, or with a larger --window"
    )


@dataclass(frozen=True)
class Substituted(Prompts):
    """The substitutions of a run, without its other tokens.

    Attributes:
        n_prompts, left_out: see `Prompts`.
        n_tokens: generated ones, among which they were found.
        prompt: to which prompt each belongs, by the order of prompt ids, [substitutions].
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
        found = choices_among(piece, tokens)
        among = found.substituted
        prompt = n_prompts + np.repeat(np.arange(tokens.n_prompts), np.diff([*tokens.starts, len(among)]))[among]
        parts.append(np.stack([prompt, found.last[among], found.confident[among]]).astype(np.int32))
        ids.append(tokens.prompt_ids(piece))
        n_prompts, n_tokens, left_out = n_prompts + tokens.n_prompts, n_tokens + len(tokens.rows), tokens.left_out
    prompt, last, confident = np.concatenate(parts, axis=1)
    if not len(prompt):
        raise _no_substitution(run, n_tokens)
    place = np.argsort(np.argsort(np.concatenate(ids), kind="stable"), kind="stable")
    return Substituted(n_prompts, left_out, n_tokens, place[prompt], last, confident)


def refuse_without_texts(run: Records) -> None:
    """RunError where a run does not hold what its tokens say: it is not complete, or an earlier version traced it."""
    if run.words.empty:
        advice = "trace it again" if run.is_complete else "continue it with --resume"
        raise RunError(
            f"{run.path} does not hold what its tokens say (words.parquet), as complete runs traced by this version "
            f"do; {advice}"
        )


def substitution_pairs(run: Records, k: int = 20) -> pd.DataFrame:
    """The k most frequent substitutions of one token by another, the most frequent first, ties by token ids.

    Columns: standard_token_id and standard, what the last layer ranked first and its text; confident_token_id and
    confident, what the valley did; count; share of all substitutions (0..1) with `_low` and `_high` (95 %, prompts
    resampled); n_prompts in which the pair occurs; n_substitutions. Only generated tokens are counted; a substitution
    is defined by the valley, whichever layer the run was decoded from. `attrs["n_tokens"]` says among how many.

    Raises:
        OptionError: k is below 1.
        RunError: no token was generated, or none is a substitution.
    """
    found = substituted(run)
    ids = np.stack([found.last, found.confident], axis=1)
    ranked, columns = _most_frequent(found, ids, k)
    texts = {
        f"{name}{part}": values
        for name, side in zip(("standard", "confident"), ranked.T, strict=True)
        for part, values in (("_token_id", side), ("", run.text_of(side)))
    }
    return _table(found, texts | columns, len(found.last))


def substituted_tokens(run: Records, method: str, k: int = 20) -> pd.DataFrame:
    """The k tokens that one method ranks first most often where the two disagree, ties by token id.

    Columns: token_id; token, its text; count; share of all substitutions (0..1) with `_low` and `_high` (95 %, prompts
    resampled); n_prompts in which it occurs; n_substitutions. Only generated tokens are counted.

    Args:
        run: what was traced.
        method: "last" for the standard tokens, "confident" for those of the valley.
        k: how many.

    Raises:
        OptionError: no such method, or k is below 1.
        RunError: no token was generated, or none is a substitution.
    """
    if method not in METHODS:
        raise OptionError(f"there is no method {method!r}; choose from {', '.join(METHODS)}")
    found = substituted(run)
    ranked, columns = _most_frequent(found, getattr(found, method)[:, None], k)
    return _table(found, {"token_id": ranked[:, 0], "token": run.text_of(ranked[:, 0])} | columns, len(found.last))


def class_shares(run: Records, whole_words: bool = False, by: str = "class") -> pd.DataFrame:
    """Shares of the kinds of words among standard tokens, confident tokens and all generated tokens.

    Columns: method ("last" and "confident", the two sides of the substitutions, and "generated", what the model
    emitted); condition, the kind of word; share (0..1) with `_low` and `_high` (95 %, prompts resampled); n_tokens of
    which it is a share; n_prompts that have such tokens. Method and condition are named as in the reported values.

    Args:
        run: what was traced.
        whole_words: judge each token by the word it stands in rather than by its own text. Before it stand the tokens
            that were emitted; after it, too, where it was emitted itself: what would have followed another token is
            not known.
        by: "class" for the classes of `word_class` by its rule "paper", "own class" for those by its rule "own",
            "frequency" for the bands of `frequency_band`.

    Raises:
        OptionError: kinds by another name, or wordfreq is missing.
        RunError: no token was generated, none is a substitution, or the run does not hold its tokens' texts.
    """
    if by not in _KINDS:
        raise OptionError(f"words cannot be sorted by {by!r}; choose from {', '.join(_KINDS)}")
    labels, classify = _KINDS[by]

    def sums_of(piece: Records, tokens: Sample) -> dict[str, PerPrompt]:
        refuse_without_texts(run)
        found = choices_among(piece, tokens)
        emitted = piece.positions["next_token_id"].iloc[tokens.rows].to_numpy(dtype=np.int64)
        sides = {"last": (found.last, found.substituted), "confident": (found.confident, found.substituted)}
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

    found = gathered(run, sums_of, generated)
    n_substitutions = found["last"].n_tokens
    if not n_substitutions:
        raise _no_substitution(run, found.n_tokens)
    rows = []
    for method, counted in found.found.items():
        for label, share, low, high in zip(labels, *found.estimate(counted), strict=True):
            row: dict[str, Any] = {"method": method, "condition": label}
            row |= {"share": share, "share_low": low, "share_high": high}
            rows.append(row | {"n_tokens": counted.n_tokens, "n_prompts": counted.n_prompts})
    return _table(found, rows, n_substitutions)


def substituted_classes(run: Records, whole_words: bool = False, by: str = "class") -> pd.DataFrame:
    """The rows of the paper's Table 8 as this run has them, named as the reported values of source 8 are.

    Columns: method; condition; quantity; value, with value_low and value_high (95 %, prompts resampled; NaN for
    counts); n_tokens; n_prompts. Quantities: "percent of substituted tokens" (0..100) for each method and word class;
    "substitutions" and "tokens", the counts, with empty method and condition. The arguments are those of
    `class_shares`; the paper's classes are "class".

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


_KINDS: dict[str, tuple[tuple[str, ...], Callable[[str], str]]] = {
    "class": (CLASSES, word_class),
    "own class": (CLASSES, partial(word_class, rule="own")),
    "frequency": (BANDS, frequency_band),
}
_SIGNS = {"\n": "⏎", "\t": "⇥"}
_REPEATED = re.compile(r"([␣⏎⇥])\1{3,}")
_MOST_ACCENTS = 2
_WORD = re.compile("c|w+(?:'w+)*")  # over the kinds of characters


def _category(character: str) -> str:
    return unicodedata.category(character)[0]


def _kind(character: str) -> str:
    """w within words, c a word by itself, ' an apostrophe, - anything else."""
    if character in "'’":
        return "'"
    if character == "\ufffd":
        return "w"
    if _category(character) not in "LMN":
        return "-"
    return "c" if unicodedata.east_asian_width(character) in "WF" else "w"


def _is_word(word: str) -> bool:
    return all(part and all(_category(c) in "LM" for c in part) for part in re.split("['-]", word))


def _without_marks(text: str) -> str:
    """Without opening marks before it and closing marks after it."""
    start, end = 0, len(text)
    while start < end and (text[start] in "\"'" or unicodedata.category(text[start]) in ("Ps", "Pi")):
        start += 1
    while end > start and (text[end - 1] in "\"'.,;:!?…" or unicodedata.category(text[end - 1]) in ("Pe", "Pf")):
        end -= 1
    return text[start:end]


def _most_frequent(found: Substituted, ids: Ints, k: int) -> tuple[Ints, dict[str, Any]]:
    """The k most frequent rows of ids [substitutions, ...], [k, ...], and their counts and shares."""
    if k < 1:
        raise OptionError(f"k is {k}; ask for at least one of the most frequent")
    distinct, which, counts = np.unique(ids, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:k]  # np.unique sorts by id, which settles ties
    code_of = np.full(len(distinct), len(order))
    code_of[order] = np.arange(len(order))
    shares = found.shares(code_of[which.reshape(-1)], len(order) + 1)
    columns = {"count": counts[order]} | {name: values[: len(order)] for name, values in shares.items()}
    return distinct[order], columns | {"n_substitutions": len(ids)}


def _words_in_place(run: Records, tokens: Sample, emitted: Ints, ids: Ints, among: Bools) -> list[str]:
    """The whole word of every id among some tokens, each in its place in what the model emitted for the prompt."""
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
    """Which of the distinct texts each text is, [texts], and these."""
    place: dict[str, int] = {}
    which = np.array([place.setdefault(text, len(place)) for text in texts], dtype=np.int64)
    return which, list(place)


def _word_begun(texts: Sequence[str], at: int) -> Sequence[str]:
    """The texts before one of them, from the last that begins with white space."""
    begin = max(0, at - 1)
    while begin > 0 and not texts[begin][:1].isspace():
        begin -= 1
    return texts[begin:at]


def _table(found: Substituted | Gathered, rows: Any, n_substitutions: int) -> pd.DataFrame:
    table = found.frame(rows)
    table.attrs |= {"n_substitutions": n_substitutions, "n_tokens": found.n_tokens}
    return table
