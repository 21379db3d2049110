"""Options and commands in messages, as the command line writes them."""

import json
import os
import shlex
from functools import cached_property
from typing import Any, NamedTuple

from layerlens.cli.mistakes import called
from layerlens.errors import Spelling

_IN_PYTHON = {
    "no_chat_template": "chat_template",
    "no_generation_config": "generation_config",
    "chat_template_arg": "chat_template_args",
    "engine_option": "engine_options",
}
"""What Python calls the options that the command line has under another name."""
_IN_A_NAME = {"offset": "last-{}", "shift": "valley{:+d}"}
"""Options of strategies that are part of the strategy's name."""


class _Flag(NamedTuple):
    on: str | None
    off: str | None
    is_switch: bool
    repeats: bool


_COMMANDS = {"evaluate": "eval"}
"""Commands that are not called as their functions, by the function."""


class CommandLine(Spelling):
    """Options as the commands declare them, the called command first. What no command declares is written as in Python.

    Args:
        group: the command line as the parser has it.
        arguments: what was given, without the program's name.
    """

    def __init__(self, group: Any, arguments: list[str]) -> None:
        self._group = group
        self._arguments = arguments

    def name(self, option: str) -> str:
        """An option without a value: --window."""
        flag = self._flags.get(option)
        return super().name(option) if flag is None else str(flag.on or flag.off)

    def with_value(self, option: str, value: object) -> str:
        """An option as it is typed: --window 12, --resume, --no-chat-template, or "no --kl"."""
        if option in _IN_A_NAME and isinstance(value, int):
            option, value = "strategy", _IN_A_NAME[option].format(value)
        flag = self._flags.get(option)
        if flag is None or value is None or (value is True and flag.on is None):
            return super().with_value(option, value)
        if value is True and flag.is_switch:
            return str(flag.on)
        if value is False and flag.off is not None:
            return flag.off
        if value is False:
            return f"no {flag.on}"
        return " ".join(f"{flag.on} {word}" for word in _arguments_of(value, repeats=flag.repeats))

    def command(self, name: str) -> str:
        """The command that does that: `layerlens trace`."""
        return f"`layerlens {_COMMANDS.get(name, name).replace('_', '-')}`"

    @cached_property
    def _flags(self) -> dict[str, _Flag]:
        """By the name of the option in Python."""
        own, _ = called(self._group, self._arguments)
        flags = {name: flag for command in (*_commands(self._group), own) for name, flag in _flags_of(command).items()}
        if "arms" in _flags_of(own):
            flags["strategy"] = flags["arms"]  # every arm is one
        return flags


def _commands(group: Any) -> list[Any]:
    inner = list(getattr(group, "commands", {}).values())
    return [group, *(command for one in inner for command in _commands(one))]


def _flags_of(command: Any) -> dict[str, _Flag]:
    flags = {}
    for option in command.params:
        if option.param_type_name == "option":
            on, off = option.opts[0], next(iter(option.secondary_opts), None)
            if on.startswith("--no-"):
                on, off = None, on
            flag = _Flag(on, off, bool(getattr(option, "is_flag", False)), bool(option.multiple))
            flags[_IN_PYTHON.get(option.name, option.name)] = flag
    return flags


def _arguments_of(value: object, *, repeats: bool) -> list[str]:
    """The values of an option, one for each time that it is given."""
    if isinstance(value, dict):
        return [shlex.quote(f"{name}={json.dumps(one)}") for name, one in value.items()]
    if isinstance(value, list | tuple):
        words = [_word(one) for one in value]
        return words if repeats else [",".join(words)]
    return [_word(value)]


def _word(value: object) -> str:
    if isinstance(value, str | os.PathLike):
        return shlex.quote(os.fspath(value))
    return str(value).removesuffix(".0")
