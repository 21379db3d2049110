"""Token ids as texts, also where a readout has vocabulary entries that the tokenizer does not know."""

from collections.abc import Sequence
from typing import Any


def decoded(tokenizer: Any, token_ids: Sequence[int], **how: bool) -> str:
    """The text of the ids as they stand together; ids that the tokenizer does not know add nothing to it.

    Args:
        tokenizer: of transformers.
        token_ids: any ids that a model emits.
        **how: what the tokenizer's own `decode` takes, such as `skip_special_tokens`.
    """
    return str(tokenizer.decode([token_id for token_id in token_ids if is_known(tokenizer, token_id)], **how))


def is_known(tokenizer: Any, token_id: int) -> bool:
    """Whether the tokenizer has a token of this id; a readout often has padding beyond its tokens."""
    try:
        token = tokenizer.convert_ids_to_tokens(int(token_id))
    except Exception:  # tokenizers written in Python raise any kind of error
        return False
    # some answer with the unknown token for any id that they do not have
    return token is not None and (token != tokenizer.unk_token or token_id == tokenizer.unk_token_id)
