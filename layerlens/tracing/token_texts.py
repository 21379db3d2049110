"""The texts of the token ids of a run, so that a run can be read without its tokenizer."""

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
    # some tokenizers drop the space before the first word, so every id is decoded after another one
    before = _some_word(tokenizer, known)
    prefix = _text(tokenizer, before)
    texts = {}
    for token_id in known:
        text = _text(tokenizer, [*before, token_id])
        texts[token_id] = text[len(prefix) :] if text.startswith(prefix) else _text(tokenizer, [token_id])
    return texts


def ids_in(*columns: Any) -> list[int]:
    """Every id that occurs in columns of ids, in order; missing ids (NaN or below 0) are left out."""
    ids = [np.unique(column[column >= 0]) for column in (np.asarray(c, dtype=np.float64) for c in columns)]
    return [int(token_id) for token_id in np.unique(np.concatenate(ids))]


def _some_word(tokenizer: Any, token_ids: Sequence[int]) -> list[int]:
    """The id of a word: of "a" or, where the tokenizer cannot write "a", of one of these; none where none is a word."""
    written: list[int] = []
    with suppress(Exception):  # tokenizers written in Python raise any kind of error
        written = tokenizer("a", add_special_tokens=False).input_ids
    candidates = (token_id for token_id in (*written[-1:], *token_ids) if is_known(tokenizer, token_id))
    return next(
        ([one] for one in candidates if _text(tokenizer, [one], skip_special_tokens=True).strip().isalnum()), []
    )


def _text(tokenizer: Any, token_ids: Sequence[int], **how: bool) -> str:
    return decoded(tokenizer, token_ids, clean_up_tokenization_spaces=False, **how)
