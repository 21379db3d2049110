"""Prompts as the model gets them: chat template applied, tokenized, checked against the context, padded."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from layerlens.datasets import Prompt
from layerlens.decode.options import GenerateOptions
from layerlens.errors import PromptError
from layerlens.models import Model


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as the model gets it."""

    prompt_id: str
    text: str
    token_ids: tuple[int, ...]
    reference: str | None


def tokenize(model: Model, prompts: Sequence[Prompt], options: GenerateOptions) -> list[TokenizedPrompt]:
    """Every prompt's text and token ids.

    Raises:
        PromptError: a prompt is empty, cannot be put into the chat template, or leaves no room in the context.
    """
    tokenized = [_tokenize(model, prompt, options) for prompt in prompts]
    room = model.context_length
    for prompt in tokenized:
        needed = len(prompt.token_ids) + options.max_new_tokens
        if room is not None and needed > room:
            new, advice = "", "shorten it"
            if options.max_new_tokens:
                new, advice = f" and {options.max_new_tokens:,} new ones", "shorten it or lower --max-new-tokens"
            raise PromptError(
                f"prompt {prompt.prompt_id} has {len(prompt.token_ids):,} tokens{new}, more than the model's context "
                f"of {room:,}; {advice}"
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
    """The ids that end a generation: the options', else the model's generation config's, else its tokenizer's."""
    if options is not None and options.eos_token_id is not None:
        given = options.eos_token_id
        return [given] if isinstance(given, int) else list(given)
    generation = getattr(model.hf, "generation_config", None)
    ids = getattr(generation, "eos_token_id", None)
    if ids is None:
        ids = model.tokenizer.eos_token_id
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def pad_token_id(model: Model) -> int:
    """An id to pad with; padding is masked, so any known id does."""
    ends = end_token_ids(model)
    candidates = (model.tokenizer.pad_token_id, ends[0] if ends else None)
    return next((int(token_id) for token_id in candidates if token_id is not None), 0)


def _tokenize(model: Model, prompt: Prompt, options: GenerateOptions) -> TokenizedPrompt:
    if options.chat_template:
        text = _templated(model, prompt, options)
        ids = model.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    elif isinstance(prompt.content, str):
        text = prompt.content
        ids = model.tokenizer(text, verbose=False).input_ids
    else:
        raise PromptError(
            f"prompt {prompt.prompt_id} is a list of messages and no chat template is in use; give a plain text, or a "
            "model whose tokenizer has a chat template"
        )
    if not ids:
        raise PromptError(f"prompt {prompt.prompt_id} has no tokens; give a text")
    top = max(ids)
    if top >= model.n_known_tokens:
        raise PromptError(
            f"prompt {prompt.prompt_id} holds token {top}, the model knows 0..{model.n_known_tokens - 1}; load the "
            "model with its own tokenizer"
        )
    return TokenizedPrompt(prompt.prompt_id, text, tuple(ids), prompt.reference)


def _templated(model: Model, prompt: Prompt, options: GenerateOptions) -> str:
    system = options.system
    messages = (
        [{"role": "user", "content": prompt.content}] if isinstance(prompt.content, str) else list(prompt.content)
    )
    if system is not None and messages[0]["role"] == "system":
        raise PromptError(f"prompt {prompt.prompt_id} has a system message of its own; leave --system out")
    if system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    ends_with_answer = messages[-1]["role"] == "assistant"
    try:
        text = model.tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=not ends_with_answer,
            # an answer that was begun is carried on; a conversation that is only looked at stays as it is
            continue_final_message=ends_with_answer and options.max_new_tokens > 0,
        )
    except Exception as error:  # templates raise whatever their author chose
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PromptError(f"prompt {prompt.prompt_id} does not fit the model's chat template ({reason})") from error
    assert isinstance(text, str)
    return text
