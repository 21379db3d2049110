"""What the token ids of a run say, so that a run can be read without its tokenizer."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def words(tokenizer: Any, token_ids: Sequence[int]) -> dict[int, str]:
    """The text of each id as it stands within a text, leading space included; "\ufffd" for a piece of a character."""
    # some tokenizers drop the space before the first word, so every id is decoded behind another one
    before = int(tokenizer("a", add_special_tokens=False).input_ids[-1])
    prefix = _text(tokenizer, [before])
    found = {}
    for token_id in token_ids:
        text = _text(tokenizer, [before, token_id])
        found[token_id] = text[len(prefix) :] if text.startswith(prefix) else _text(tokenizer, [token_id])
    return found


def ids_in(*columns: Any) -> list[int]:
    """Every id that occurs in columns of ids, in order; nulls are passed over."""
    found = [np.unique(column[~np.isnan(column)]) for column in (np.asarray(c, dtype=np.float64) for c in columns)]
    return [int(token_id) for token_id in np.unique(np.concatenate(found))]


def _text(tokenizer: Any, token_ids: list[int]) -> str:
    return str(tokenizer.decode(token_ids, clean_up_tokenization_spaces=False))
