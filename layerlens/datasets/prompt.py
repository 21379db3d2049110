"""What a prompt is, what a dataset of prompts is, and which of them cannot be used."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from layerlens.errors import OptionError, PromptError

Message = dict[str, str]
"""One turn of a chat: {"role": ..., "content": ...}."""

Content = str | tuple[Message, ...]


@dataclass(frozen=True)
class Prompt:
    """One thing to ask a model."""

    prompt_id: str
    """Unique in its dataset; the same in every run and under every limit."""
    content: Content
    """A plain text, or the messages of a chat."""
    reference: str | None = None
    """The reference answer, where there is one."""


@dataclass(frozen=True)
class Dataset:
    """Prompts in a fixed order, and where they came from."""

    name: str
    """What the user called it: a dataset's name, a file's name, or "prompts"."""
    config: str | None
    split: str | None
    revision: str | None
    """The hub revision that was asked for; None for the default revision, and for prompts that are not from the hub."""
    sha256: str | None
    """The SHA-256 of the local file, where one was read."""
    prompts: tuple[Prompt, ...]
    part: "Part | None" = None
    """Which part of a larger dataset this is."""

    def record(self) -> dict[str, str | int | None]:
        """What a manifest says of it."""
        said = {name: getattr(self, name) for name in ("name", "config", "split", "revision", "sha256")}
        return said | {"rows": len(self)} | ({} if self.part is None else self.part.record())

    def shard(self, number: int, of: int) -> "Dataset":
        """One of `of` shards: every `of`-th prompt, from the `number`-th (1..of) on. Together they are the dataset.

        Raises:
            OptionError: there is no such shard, it would have no prompt, or this is a shard itself.
        """
        given = f"{number}/{of}"
        if not 1 <= number <= of:
            advice = "give a number from 1 to the number of shards, such as 2/4"
            raise OptionError.about("shard", given, "is not a shard", advice)
        if self.part is not None:
            raise OptionError.about(
                "shard",
                given,
                "cannot be taken of a dataset that is itself a shard",
                "split the whole dataset only once",
            )
        if number > len(self):
            what = f"would have no prompt, because the dataset has only {len(self)}"
            raise OptionError.about("shard", given, what, f"give {len(self)} shards at most")
        ids = hashlib.sha256("\0".join(prompt.prompt_id for prompt in self).encode()).hexdigest()
        part = Part(number, of, len(self), ids)
        return replace(self, prompts=self.prompts[number - 1 :: of], part=part)

    def place_of(self, batch: int) -> int:
        """The number of this batch in the whole dataset, both from 0, if the shards take turns batch by batch."""
        return batch if self.part is None else batch * self.part.of + self.part.number - 1

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)


@dataclass(frozen=True)
class Part:
    """Which prompts of a dataset a shard has."""

    number: int
    """1..of."""
    of: int
    all_rows: int
    """Prompts of the whole dataset."""
    ids_sha256: str
    """A digest of the ids of the whole dataset, in order."""

    def record(self) -> dict[str, str | int | None]:
        """What a manifest says of it."""
        return {"shard": f"{self.number}/{self.of}", "all_rows": self.all_rows, "ids_sha256": self.ids_sha256}


def checked_text(value: object, where: str) -> str:
    """The value, if it is a text that is not empty; otherwise a PromptError that starts with `where`."""
    if not isinstance(value, str):
        raise PromptError(f"{where}: the prompt is {kind(value)}", "give a text", given=value)
    if not value.strip():
        advice = "give a text that is not empty, or leave it out"
        raise PromptError(f"{where}: the prompt {value!r} is empty", advice, given=value)
    return value


def checked_messages(value: object, where: str) -> tuple[Message, ...]:
    """Copies of the messages, if they are a chat; otherwise a PromptError that starts with `where`."""
    if not isinstance(value, (list, tuple)):
        raise PromptError(f"{where}: the messages are {kind(value)}", f"give a list of {_A_MESSAGE}", given=value)
    messages = tuple(_checked_message(message, f"{where}, message {n}") for n, message in enumerate(value, start=1))
    if not any(message["content"].strip() for message in messages):
        said = f"{where}: the messages {list(value)!r} have no text"
        raise PromptError(said, "give at least one with a text in it", given=value)
    return messages


_A_MESSAGE = '{"role": "user", "content": "some text"}'


def _checked_message(value: object, where: str) -> Message:
    if not isinstance(value, dict) or not all(isinstance(text, str) for pair in value.items() for text in pair):
        raise PromptError(f"{where}: {value!r} is not an object of texts", f"write it like {_A_MESSAGE}", given=value)
    if not value.get("role") or "content" not in value:
        raise PromptError(f"{where}: {value!r} lacks a role or a content", f"write it like {_A_MESSAGE}", given=value)
    return dict(value)


def check_unique(prompts: Sequence[Prompt], places: Sequence[str]) -> None:
    """Raise a PromptError if two prompts have the same id; it names the places of the first two."""
    first: dict[str, str] = {}
    for prompt, place in zip(prompts, places, strict=True):
        if prompt.prompt_id in first:
            raise PromptError(
                f"{place}: the id {prompt.prompt_id!r} is also the id of {first[prompt.prompt_id]}",
                "give every prompt an id of its own",
                given=prompt.prompt_id,
            )
        first[prompt.prompt_id] = place


def check_limit(limit: int | None) -> None:
    """Raise an OptionError unless the limit is None or a whole number from 1."""
    if limit is None:
        return
    if not isinstance(limit, int) or isinstance(limit, bool):
        raise OptionError.about("limit", limit, "is not a number of prompts", "give a whole number from 1")
    if limit < 1:
        raise OptionError.about("limit", limit, "asks for no prompts", "give a whole number from 1")


def kind(value: object) -> str:
    """A value as a message describes it: "missing", "the number 5", "of type dict"."""
    if value is None:
        return "missing"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"the number {value}"
    return f"of type {type(value).__name__}"
