"""Chats as texts: what a tokenizer's chat template writes, and whether it uses everything that it was given."""

from typing import Any

from jinja2 import TemplateError, meta

from layerlens.compat import chat_environment
from layerlens.datasets import Prompt
from layerlens.decode.options import GenerateOptions
from layerlens.decode.turns import Messages, Turns
from layerlens.errors import OptionError, PromptError, first_sentence, spelled
from layerlens.limits import TookTooLongError, within

_LONGEST = 5.0  # seconds; templates of models take a thousandth of one


class ChatTemplate:
    """The chat template of a tokenizer, with the variables of `chat_template_args`.

    Args:
        tokenizer: one with a chat template.
        options: of the generation.

    Raises:
        OptionError: the template never reads such a variable, or the tokenizer has several templates and no default.
    """

    def __init__(self, tokenizer: Any, options: GenerateOptions) -> None:
        self._tokenizer = tokenizer
        self._options = options
        self._variables = options.chat_template_args or {}
        self._taken_in: set[tuple[Any, ...]] = set()
        read = _read_by(self._in_use())
        if isinstance(tokenizer.chat_template, dict) and "tool_use" in tokenizer.chat_template and read is not None:
            read.add("tools")  # which choose the template
        self._refuse_never_read(read)
        special = {str(token) for token in tokenizer.added_tokens_decoder.values()} | {*tokenizer.all_special_tokens}
        self._turns = Turns(self._rendered_or_none, special)

    def text(self, prompt: Prompt) -> str:
        """The prompt as the template writes it.

        Raises:
            PromptError: the template refuses the messages or leaves one of them out, or the prompt is already a text of
                this template.
        """
        content, system = prompt.content, self._options.system
        messages: Messages = [{"role": "user", "content": content}] if isinstance(content, str) else list(content)
        if system is not None:
            if messages[0]["role"] == "system":
                problem = f"prompt {prompt.prompt_id} has a system message of its own"
                raise PromptError(problem, f"leave {spelled('system')} out", option="system", given=system)
            messages = [{"role": "system", "content": system}, *messages]
        try:
            text = self._rendered(messages)
        except PromptError:
            raise
        except Exception as error:  # templates raise whatever their author chose
            reason = first_sentence(error)
            problem = f"prompt {prompt.prompt_id} does not fit the model's chat template ({reason})"
            advice = f"change its messages, or give {spelled('chat_template', False)}"
            raise PromptError(problem, advice, given=prompt.prompt_id) from error
        if isinstance(content, str):
            self._refuse_rendered(prompt.prompt_id, content)
        self._refuse_passed_over(prompt.prompt_id, messages, text)
        return text

    def _in_use(self) -> str:
        try:
            return str(self._tokenizer.get_chat_template(tools=self._variables.get("tools")))
        except ValueError as error:
            names = ", ".join(sorted(self._tokenizer.chat_template))
            raise OptionError(
                f"this model has several chat templates ({names}), and none of them is called default",
                f"set tokenizer.chat_template to one of them, or give {spelled('chat_template', False)}",
                option="chat_template",
                given=self._options.chat_template,
            ) from error

    def _refuse_never_read(self, read: set[str] | None) -> None:
        """OptionError for a variable that is not among those that the template reads."""
        for name in self._variables:
            if read is not None and name not in read:
                raise OptionError(
                    f"{spelled('chat_template_args')} has {name}, which has no effect: this model's chat template "
                    "never reads a variable of that name that it did not set itself (it reads "
                    f"{', '.join(sorted(read))})",
                    "check the name, or leave it out",
                    option="chat_template_args",
                    given={name: self._variables[name]},
                )

    def _rendered(self, messages: Messages, *, begins_answer: bool = True) -> str:
        ends_with_answer = messages[-1]["role"] == "assistant"
        try:
            with within(_LONGEST):
                text = self._tokenizer.apply_chat_template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=begins_answer and not ends_with_answer,
                    # an answer that was begun is continued
                    continue_final_message=ends_with_answer and self._options.max_new_tokens > 0,
                    **self._variables,
                )
        except TookTooLongError as error:
            problem = f"the model's chat template did not end within {_LONGEST:g} seconds"
            raise PromptError(problem, f"give {spelled('chat_template', False)}", option="chat_template") from error
        assert isinstance(text, str)
        return text

    def _refuse_rendered(self, prompt_id: str, content: str) -> None:
        """PromptError where the prompt already has the turn markers of the template."""
        marker = self._turns.found_in(content)
        if marker is not None:
            raise PromptError(
                f"prompt {prompt_id} holds {marker!r}, which the chat template writes itself around a message",
                f"give {spelled('chat_template', False)} for a chat that is written out already, or the prompt as a "
                "list of messages",
                option="chat_template",
                given=marker,
            )

    def _refuse_passed_over(self, prompt_id: str, messages: Messages, text: str) -> None:
        """PromptError where the template leaves the text of a message out."""
        pattern = tuple((message["role"], *sorted(message), not message["content"].strip()) for message in messages)
        if pattern in self._taken_in:
            return
        self._taken_in.add(pattern)
        marks = {place: f"qz{place}xk" for place, message in enumerate(messages) if message["content"].strip()}
        marked = self._rendered_or_none(
            [one | {"content": marks.get(place, one["content"])} for place, one in enumerate(messages)]
        )
        for place, mark in marks.items():
            if marked is None or mark in marked:
                continue
            # a template may depend on what a message says, so the message itself must make no difference either
            changed = [*messages]
            changed[place] = changed[place] | {"content": changed[place]["content"] + mark}
            if self._rendered_or_none(changed) == text:
                by_option = self._options.system is not None and place == 0
                number = place + 1 - (self._options.system is not None)
                left_out = f"message {number}, of the role {messages[place]['role']!r}"
                raise PromptError(
                    f"prompt {prompt_id}: the model's chat template leaves out "
                    + (spelled("system") if by_option else left_out),
                    "put its text into the user's message",
                    option="system" if by_option else None,
                    given=messages[place]["content"],
                )

    def _rendered_or_none(self, messages: Messages, *, begins_answer: bool = True) -> str | None:
        try:
            return self._rendered(messages, begins_answer=begins_answer)
        except PromptError:
            raise
        except Exception:  # as above
            return None


def _read_by(template: str) -> set[str] | None:
    """The variables that a template reads from outside; None where it cannot be parsed, which rendering will report."""
    try:
        # transformers' own environment, which knows tags that jinja's does not
        environment = chat_environment(template)
        return meta.find_undeclared_variables(environment.parse(template))
    except TemplateError:
        return None
