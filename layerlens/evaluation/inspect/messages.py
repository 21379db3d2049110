"""A conversation of inspect as a prompt."""

from collections.abc import Sequence
from typing import Any

from inspect_ai.model import ChatMessage

from layerlens.datasets import Prompt
from layerlens.errors import OptionError, PromptError

_ID = "of the request"


def prompt_of(messages: Sequence[ChatMessage], tokenizer: Any, chat_template: bool | None = None) -> Prompt:
    """The messages as a chat; or joined by blank lines, without a chat template.

    Args:
        messages: of the conversation.
        tokenizer: of the model.
        chat_template: as `GenerateOptions` has it; None: where the tokenizer has one.

    Raises:
        OptionError: a message holds something else than text.
        PromptError: there is no message.
    """
    if not messages:
        raise PromptError("the conversation has no messages", "give one with text")
    chat = []
    for message in messages:
        if message.role == "tool":
            problem = "the conversation holds what a tool returned, which layerlens does not pass on"
            raise OptionError(problem, "give another model for this task", given=message.role)
        if not (isinstance(message.content, str) or _is_text(message.content)):
            problem = f"a message of the {message.role} holds something else than text"
            raise OptionError(problem, "give another model for this task", given=message.role)
        chat.append({"role": message.role, "content": message.text})
    if chat_template or (chat_template is None and getattr(tokenizer, "chat_template", None)):
        return Prompt(_ID, tuple(chat))
    return Prompt(_ID, "\n\n".join(message["content"] for message in chat))


def _is_text(content: Any) -> bool:
    return isinstance(content, list) and all(getattr(part, "type", None) in ("text", "reasoning") for part in content)
