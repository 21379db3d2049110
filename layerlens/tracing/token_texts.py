"""What the token ids of a run say, so that a run can be read without its tokenizer."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from layerlens.decode.texts import decoded, is_known


def token_texts(tokenizer: Any, token_ids: Sequence[int]) -> dict[int, str]:
    """The text of each id as it stands within a text, leading space included; "\ufffd" for a piece of a character.

    Ids that the tokenizer does not know are left out.
    """
    known = [token_id for token_id in token_ids if is_known(tokenizer, token_id)]
    # some tokenizers drop the space before the first word, so every id is decoded behind another one
    before = _some_word(tokenizer, known)
    prefix = _text(tokenizer, before)
    texts = {}
    for token_id in known:
        text = _text(tokenizer, [*before, token_id])
        texts[token_id] = text[len(prefix) :] if text.startswith(prefix) else _text(tokenizer, [token_id])
    return texts


def ids_in(*columns: Any) -> list[int]:
    """Every id that occurs in columns of ids, in order; nulls are passed over, NaN or below 0."""
    ids = [np.unique(column[column >= 0]) for column in (np.asarray(c, dtype=np.float64) for c in columns)]
    return [int(token_id) for token_id in np.unique(np.concatenate(ids))]


def _some_word(tokenizer: Any, token_ids: Sequence[int]) -> list[int]:
    """An id that says a word: that of "a" or, where the tokenizer cannot write it, one of these; none if none does."""
    written: list[int] = []
    with suppress(Exception):  # tokenizers in Python raise whatever their tables raise
        written = tokenizer("a", add_special_tokens=False).input_ids
    candidates = (token_id for token_id in (*written[-1:], *token_ids) if is_known(tokenizer, token_id))
    return next(
        ([one] for one in candidates if _text(tokenizer, [one], skip_special_tokens=True).strip().isalnum()), []
    )


def _text(tokenizer: Any, token_ids: Sequence[int], **how: bool) -> str:
    return decoded(tokenizer, token_ids, clean_up_tokenization_spaces=False, **how)
