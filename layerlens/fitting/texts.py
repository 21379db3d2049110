"""Texts for a fit: tokenized, cut, without repeats, and split into texts to fit on, to choose by and to measure on.

Tokens of one text resemble each other, so whole texts are split, never tokens.
"""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layerlens.datasets import Dataset
from layerlens.decode.prompts import tokenize
from layerlens.errors import Notice, PromptError, spelled
from layerlens.fitting.options import FitOptions
from layerlens.models import Model
from layerlens.tracing.options import TraceOptions

_HELD_OUT = 0.1
_LEAST_HELD_OUT = 2  # an interval needs two texts
_MOST_HELD_OUT = 20  # each of their states is read out by two lenses, which costs more than the fit


@dataclass(frozen=True)
class Text:
    """A text as the model gets it."""

    text_id: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Split:
    """Texts by their use.

    Attributes:
        fitted: texts to fit on.
        chosen_by: texts held out to choose by: a penalty, or when to stop.
        measured: texts used for neither, to measure what the lens gains.
        skip: positions at the beginning of each text that are left out.
    """

    fitted: Sequence[Text]
    chosen_by: Sequence[Text]
    measured: Sequence[Text]
    skip: int

    def n_positions(self, texts: Sequence[Text]) -> int:
        """How many states of each layer the texts have."""
        return sum(len(text.token_ids) - self.skip for text in texts)

    def digest(self) -> str:
        """SHA-256 of all token ids and of how they are split."""
        said = [[text.token_ids for text in part] for part in (self.fitted, self.chosen_by, self.measured)]
        return hashlib.sha256(repr(said).encode()).hexdigest()


def split_texts(model: Model, dataset: Dataset, options: FitOptions) -> Split:
    """The split of a dataset's texts: a tenth to choose by, a tenth to measure on, 2 to 20 of each, the rest to fit on.

    A beginning that all texts share, such as a system message, is left out too. The states there are the same in every
    text, so held-out texts would not be new there.

    Raises:
        PromptError: there are too few texts with a position to read, or one that the model cannot read.
    """
    texts = _texts(model, dataset, options)
    skip = max(options.skip_first, _n_shared(texts))
    shortest = skip + options.least_positions
    texts = [text for text in texts if len(text.token_ids) >= shortest]
    parts = 1 + options.chooses
    if len(texts) < 1 + parts * _LEAST_HELD_OUT:
        raise PromptError(
            f"{len(texts)} different texts of {shortest} tokens or more are too few to fit a {options.kind} lens",
            f"give {1 + parts * _LEAST_HELD_OUT} or more, of which {parts * _LEAST_HELD_OUT} are held out",
            option="prompts",
            given=len(texts),
        )
    order = np.random.default_rng(options.seed).permutation(len(texts)).tolist()
    n_out = min(max(_LEAST_HELD_OUT, round(_HELD_OUT * len(texts))), _MOST_HELD_OUT)
    measured, chosen_by, fitted = order[:n_out], order[n_out : parts * n_out], order[parts * n_out :]

    def dealt(places: list[int]) -> list[Text]:
        return [texts[place] for place in sorted(places)]

    return Split(dealt(fitted), dealt(chosen_by), dealt(measured), skip)


def _n_shared(texts: Sequence[Text]) -> int:
    """How many tokens at the beginning all texts share; 0 where there is only one text."""
    least, greatest = (end([text.token_ids for text in texts], default=()) for end in (min, max))
    pairs = zip(least, greatest, strict=False)
    return 0 if least == greatest else next((n for n, (a, b) in enumerate(pairs) if a != b), len(least))


def _texts(model: Model, dataset: Dataset, options: FitOptions) -> list[Text]:
    given = TraceOptions(max_new_tokens=0, chat_template=options.chat_template)
    settled = given.settled(model.n_layers, bool(getattr(model.tokenizer, "chat_template", None)))
    tokenized = tokenize(model, dataset.prompts, settled, fits_context=False)
    room = model.context_length
    most = options.max_length if room is None else min(options.max_length, room)
    n_cut = sum(len(prompt.token_ids) > most for prompt in tokenized)
    if n_cut:
        n_left_out = sum(max(0, len(prompt.token_ids) - most) for prompt in tokenized)
        cut = f"{n_cut} of {len(tokenized)} texts are cut after {most} tokens, {n_left_out:,} are left out"
        by_context = f"which is the context of {model.source}"
        advice = by_context if most == room else f"raise {spelled('max_length')} to take more"
        warnings.warn(f"{cut}; {advice}", Notice, stacklevel=5)
    texts: dict[tuple[int, ...], Text] = {}
    for prompt in tokenized:
        token_ids = prompt.token_ids[:most]
        texts.setdefault(token_ids, Text(prompt.prompt_id, token_ids))
    return list(texts.values())
