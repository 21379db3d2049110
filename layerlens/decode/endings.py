"""What ends a generation."""

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import EosTokenCriteria, StoppingCriteriaList, StopStringCriteria

from layerlens.errors import OptionError, first_sentence


def ending_criteria(
    eos_token_id: int | Sequence[int] | None, stop_strings: str | list[str] | None, tokenizer: Any
) -> StoppingCriteriaList:
    """Criteria that end single rows of a generation; OptionError where the tokenizer cannot encode a stop string."""
    criteria = StoppingCriteriaList()
    if eos_token_id is not None and eos_token_id != []:
        criteria.append(EosTokenCriteria(eos_token_id if isinstance(eos_token_id, int) else list(eos_token_id)))
    if stop_strings:
        try:
            criteria.append(_stop_criterion(tokenizer, stop_strings))
        except Exception as error:  # where it cannot take the tokenizer's tokens apart
            texts = [stop_strings] if isinstance(stop_strings, str) else stop_strings
            what = f"cannot be looked for with a {type(tokenizer).__name__} ({first_sentence(error)})"
            raise OptionError.about("stop_strings", texts, what, "give others, or leave them out") from error
    return criteria


_MOST_KEPT = 16
_kept: WeakKeyDictionary[Any, dict[Any, StopStringCriteria]] = WeakKeyDictionary()


def _stop_criterion(tokenizer: Any, stop_strings: str | list[str]) -> StopStringCriteria:
    """The criterion of these strings; kept, because making one takes every token of the vocabulary apart."""
    texts = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings)
    key = (texts, len(tokenizer))
    criteria = _kept.setdefault(tokenizer, {})
    if key not in criteria:
        if len(criteria) >= _MOST_KEPT:
            criteria.clear()
        criteria[key] = StopStringCriteria(tokenizer, list(texts))
    return criteria[key]


def has_ended(criteria: StoppingCriteriaList, token_ids: Sequence[int]) -> bool:
    """Whether any of the criteria ends a text with its last token."""
    ids: Any = torch.tensor([token_ids])
    nothing: Any = None
    return bool(criteria) and bool(criteria(ids, nothing)[0])
