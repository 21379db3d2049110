"""Prompts that the user wrote: a list in Python, or a file."""

from collections.abc import Iterable, Sequence
from os import PathLike

from layerlens.datasets import files
from layerlens.datasets.prompt import (
    Content,
    Dataset,
    Message,
    Prompt,
    check_limit,
    check_unique,
    checked_messages,
    checked_text,
    kind,
)
from layerlens.errors import PromptError, did_you_mean
from layerlens.paths import expanded


def from_prompts(items: Iterable[str | Sequence[Message] | Prompt], limit: int | None = None) -> Dataset:
    """A dataset named "prompts" of texts, chats (lists of messages) and Prompts.

    A text or a chat gets its index as its id ("0", "1", ...); a Prompt keeps its own. A PromptError is raised for an
    empty list, for an item of another type (with its index), and for two prompts with the same id.
    """
    check_limit(limit)
    if isinstance(items, (str, bytes, dict)) or not isinstance(items, Iterable):
        raise PromptError(
            f"the prompts are {kind(items)}", "give a list, even of a single prompt", option="prompts", given=items
        )
    prompts = [_from_item(item, index) for index, item in enumerate(items)]
    if not prompts:
        raise PromptError("the list of prompts is empty", "give at least one", option="prompts", given=items)
    check_unique(prompts, [f"prompts[{index}]" for index in range(len(prompts))])
    return Dataset("prompts", None, None, None, None, tuple(prompts[:limit]))


def _from_item(item: object, index: int) -> Prompt:
    where = f"prompts[{index}]"
    if isinstance(item, Prompt):
        if not isinstance(item.prompt_id, str) or not isinstance(item.reference, (str, type(None))):
            raise PromptError(
                f"{where}: the id {item.prompt_id!r} or the reference {item.reference!r} is not a text",
                "give texts",
                given=item,
            )
        return Prompt(item.prompt_id, _checked_content(item.content, where), item.reference)
    return Prompt(str(index), _checked_content(item, where))


def _checked_content(value: object, where: str) -> Content:
    if isinstance(value, str):
        return checked_text(value, where)
    if isinstance(value, (list, tuple)):
        return checked_messages(value, where)
    if isinstance(value, dict):
        advice = (
            "give a text, a list of messages such as [{'role': 'user', 'content': 'some text'}], or a layerlens Prompt"
        )
        problem = f"{where} is a dict with {named_keys(value)}, and a dict is one message of a chat"
        raise PromptError(problem, advice, given=value)
    advice = "give a text, a list of messages, or a layerlens Prompt"
    raise PromptError(f"{where} is {kind(value)}", advice, given=value)


def read_prompts(path: str | PathLike[str], limit: int | None = None) -> Dataset:
    """The prompts of a file in their order, as a dataset with the name of the file; blank lines are skipped.

    `.txt`: every line is a prompt. `.jsonl`: every line is an object with `prompt` (a text) or `messages` (a chat), and
    may have an `id` and a `reference`. Without an id, the number of the line (from 1) is the id. The whole file is
    checked before it is used. A PromptError names the file, the line and what is expected there.
    """
    check_limit(limit)
    path = expanded(path)
    content = files.read_bytes(path)
    if path.suffix.lower() not in (".txt", ".jsonl"):
        raise PromptError(
            f"{path} ends with {path.suffix!r}",
            "give a .txt file with a prompt on each line, or a .jsonl file with an object on each line",
            option="prompts",
            given=path,
        )
    from_line = _from_json if path.suffix.lower() == ".jsonl" else _from_text
    lines = list(files.numbered_lines(files.decode(content, path)))
    if not lines:
        advice = "give a file with at least one prompt"
        raise PromptError(f"{path} has only blank lines", advice, option="prompts", given=path)
    places = [f"{path}, line {number}" for number, _ in lines]
    prompts = [from_line(line, number, where) for (number, line), where in zip(lines, places, strict=True)]
    check_unique(prompts, places)
    return Dataset(path.name, None, None, None, files.sha256(content), tuple(prompts[:limit]))


def _from_text(line: str, number: int, where: str) -> Prompt:
    return Prompt(str(number), line)


def _from_json(line: str, number: int, where: str) -> Prompt:
    row = files.json_object(line, where)
    if "prompt" in row and "messages" in row:
        advice = "give one of them: a text as prompt, or a chat as messages"
        raise PromptError(f"{where}: both a prompt and messages", advice, given=row)
    if "prompt" not in row and "messages" not in row:
        problem = f"{where}: neither a prompt nor messages, but {named_keys(row)}"
        hints = [did_you_mean(key, ("prompt", "messages"), "") for key in row]
        advice = next(filter(None, hints), 'write the text under "prompt", or a list of messages under "messages"')
        raise PromptError(problem, advice, given=row)
    content = checked_text(row["prompt"], where) if "prompt" in row else checked_messages(row["messages"], where)
    prompt_id = _optional(row, "id", where)
    return Prompt(str(number) if prompt_id is None else prompt_id, content, _optional(row, "reference", where))


def named_keys(row: dict[str, object]) -> str:
    """The keys of an object as part of a sentence."""
    shown = [f'"{key}"' for key in row]
    return ", ".join(shown[:4]) + (" and others" if len(shown) > 4 else "") or "no key"


def _optional(row: dict[str, object], key: str, where: str) -> str | None:
    value = row.get(key)
    if value is None or (isinstance(value, str) and value):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    said = f"{where}: the {key} {value!r} is neither a text nor a number"
    raise PromptError(said, "give one, or leave it out", given=value)
