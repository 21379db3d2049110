"""Prompts as the model gets them: with the chat template applied, tokenized, checked against the context, and
padded."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layerlens.datasets import Prompt
from layerlens.decode.chat import ChatTemplate
from layerlens.decode.options import NO_TOKEN, GenerateOptions
from layerlens.errors import ModelError, OptionError, PromptError, excerpt, first_sentence, is_utf8, is_whole, spelled
from layerlens.models import Model

_LONG, _TIMES = 1_000_000, 4
"""A text of more characters is not tokenized, which takes a second per million, where its context cannot hold it even
if the tokenizer shortens it to a quarter, as few normalizers do."""


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as the model gets it."""

    prompt_id: str
    text: str
    token_ids: tuple[int, ...]
    reference: str | None


def tokenize(
    model: Model, prompts: Sequence[Prompt], options: GenerateOptions, *, fits_context: bool = True
) -> list[TokenizedPrompt]:
    """Every prompt's text and token ids. Without `fits_context`, texts that are too long for the model are not refused.

    Raises:
        OptionError: the model cannot emit an end token that was given, or the chat template has no such variable.
        PromptError: a prompt is empty, does not fit the chat template or the tokenizer, or leaves no room in the
            context.
    """
    end_token_ids(model, options)
    template = ChatTemplate(model.tokenizer, options) if options.chat_template else None
    room = model.context_length if fits_context else None
    tokenized = [_tokenize(model, prompt, options, template, room) for prompt in prompts]
    for prompt in tokenized:
        needed = len(prompt.token_ids) + options.max_new_tokens
        if room is not None and needed > room:
            new, advice = "", "shorten it"
            if options.max_new_tokens:
                new = f" and {options.max_new_tokens:,} new ones"
                advice = f"shorten it or lower {spelled('max_new_tokens')}"
            raise PromptError(
                f"prompt {prompt.prompt_id} has {len(prompt.token_ids):,} tokens{new}, more than the model's context "
                f"of {room:,}",
                advice,
                option="max_new_tokens" if options.max_new_tokens else None,
                given=options.max_new_tokens or needed,
            )
    return tokenized


def pad(sequences: Sequence[Sequence[int]], pad_id: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask of a batch, each int64 [batch, seq]."""
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        place = slice(longest - len(sequence), None) if left else slice(len(sequence))
        ids[row, place] = torch.tensor(sequence)
        mask[row, place] = 1
    return ids, mask


def end_token_ids(model: Model, options: GenerateOptions | None = None) -> list[int]:
    """The ids that end a generation: the options', else the model's generation config's, else its tokenizer's.

    Ids that the model cannot emit are left out: configs write -1 for "no token", and name tokens that were never added.

    Raises:
        OptionError: the options name an id, other than -1, that the model cannot emit.
    """
    given = None if options is None else options.eos_token_id
    ids: Any = getattr(getattr(model.hf, "generation_config", None), "eos_token_id", None) if given is None else given
    if ids is None:
        ids = model.tokenizer.eos_token_id
    is_list = isinstance(ids, Sequence) and not isinstance(ids, str)
    every = [] if ids is None else list(ids) if is_list else [ids]
    if not all(map(is_whole, every)):
        problem = f"the model's generation config has {ids!r} as eos_token_id, which is no token id"
        raise ModelError(problem, f"mend it, or give {spelled('eos_token_id')}", given=ids)
    ends = [token_id for token_id in every if 0 <= token_id < model.n_vocab]
    if given is not None and len(ends) < len(every) - every.count(NO_TOKEN):
        what = "holds an id that the model never emits"
        raise OptionError.about(
            "eos_token_id", given, what, f"give ids of 0..{model.n_vocab - 1}, or {NO_TOKEN} for no end token"
        )
    return ends


def pad_token_id(model: Model) -> int:
    """An id to pad with. Padding is masked, so any id will do that the model both reads and emits."""
    n_known = min(model.n_known_tokens, model.n_vocab)
    candidates = (model.tokenizer.pad_token_id, *end_token_ids(model))
    return next((int(token_id) for token_id in candidates if token_id is not None and 0 <= token_id < n_known), 0)


def refuse_unreadable(emitted: Iterable[int], n_known_tokens: int) -> None:
    """ModelError where a token without an embedding was emitted, so that the model cannot continue from it."""
    for token_id in emitted:
        if token_id >= n_known_tokens:
            raise ModelError(
                f"the model emitted token {token_id} and has embeddings of 0..{n_known_tokens - 1} only, so it cannot "
                "continue",
                "give its embeddings as many rows as its unembedding has",
                given=token_id,
            )


def _tokenize(
    model: Model, prompt: Prompt, options: GenerateOptions, template: ChatTemplate | None, room: int | None
) -> TokenizedPrompt:
    if template is not None:
        text = template.text(prompt)
    elif isinstance(prompt.content, str):
        text = prompt.content
    else:
        problem = f"prompt {prompt.prompt_id} is a list of messages, and no chat template is in use"
        advice = "give a plain text, or a model whose tokenizer has a chat template"
        raise PromptError(problem, advice, option="chat_template", given=prompt.prompt_id)
    for what, said in (("the id", prompt.prompt_id), ("the reference", prompt.reference), ("the text", text)):
        if said is not None and not is_utf8(said):
            problem = f"prompt {prompt.prompt_id!r}: {what} is not UTF-8 text: {excerpt(said)}"
            raise PromptError(problem, "mend it", given=said)
    if room is not None and overflows(text, model.tokenizer, room):
        problem = f"prompt {prompt.prompt_id} has {len(text):,} characters, more than the model's context of {room:,}"
        raise PromptError(f"{problem} tokens can hold", "shorten it", given=len(text))
    special = template is None if options.add_special_tokens is None else options.add_special_tokens
    try:
        ids = _token_ids(model.tokenizer, text, special=special)
    except Exception as error:  # tokenizers written in Python raise any kind of error
        problem = f"prompt {prompt.prompt_id} holds a text that the tokenizer cannot encode"
        raise PromptError(f"{problem} ({first_sentence(error)})", "leave that text out", given=text) from error
    if not ids:
        raise PromptError(f"prompt {prompt.prompt_id} has no tokens", "give a text", given=text)
    unknown = [token_id for token_id in ids if token_id is None or not 0 <= token_id < model.n_known_tokens]
    if unknown:
        problem = (
            f"prompt {prompt.prompt_id} holds token {unknown[0]}, and the model knows 0..{model.n_known_tokens - 1}"
        )
        raise PromptError(problem, "load the model with its own tokenizer", given=unknown[0])
    return TokenizedPrompt(prompt.prompt_id, text, tuple(ids), prompt.reference)


def overflows(text: str, tokenizer: Any, room: int) -> bool:
    """Whether a long text cannot be so few tokens; False also where that cannot be told before it is tokenized."""
    if len(text) <= _LONG:
        return False
    longest = max(map(len, tokenizer.get_vocab()), default=1)
    return len(text) > _TIMES * room * longest


def _token_ids(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    """The ids of a text with the tokenizer's special tokens, but without a second begin token if the text has one."""
    bare: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    if not special:
        return bare
    ids: list[int] = tokenizer(text, add_special_tokens=True, verbose=False).input_ids
    n_more = len(ids) - len(bare)
    n_before = next((n for n in range(n_more, 0, -1) if ids[n : n + len(bare)] == bare), 0)
    return ids[n_before:] if ids[:n_before] == bare[:n_before] else ids
