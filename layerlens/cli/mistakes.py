"""Sentences for what the parser of the command line refuses. Each repeats what was given and says what to do."""

import re
import shlex
import sys
from functools import partial
from typing import Any

import typer

from layerlens.errors import OptionError, did_you_mean, is_utf8

# where the errors are declared that typer raises: in click, or in the copy of click that newer typers bring
_ERRORS: Any = sys.modules[typer.BadParameter.__module__]

_NUMBERS = {"int": "whole number, such as 3", "integer": "whole number, such as 3", "float": "number, such as 0.5"}


def refuse_missing_values(group: Any, arguments: list[str]) -> None:
    """OptionError where an option has no value: it stands last, another option follows, or its path is empty.

    The parser would take what follows `--out $UNSET --resume` for the value, and an empty path for this directory.

    Args:
        group: the command line as the parser has it.
        arguments: what was given, without the program's name.
    """
    command, _ = called(group, arguments)
    options = _options(command)
    for place, word in enumerate(arguments):
        if word == "--":
            return
        name, assigned, value = word.partition("=")
        if name not in options or _is_flag(options[name]):
            continue
        following = value if assigned else next(iter(arguments[place + 1 :]), None)
        is_option = not assigned and (following or "").partition("=")[0] in (*options, "--help")
        if following is None or is_option or (following == "" and options[name].type.name == "path"):
            given = "nothing" if following is None else following or "an empty text"
            raise OptionError(
                f"{name} is followed by {given}",
                f"give it a value ({_help(options[name])})",
                option=options[name].name,
                given=following,
            )


def refuse_not_utf8(arguments: list[str]) -> None:
    """OptionError where an argument is not UTF-8, because no prompt and no record can hold it."""
    for before, word in zip(["", *arguments], arguments, strict=False):
        if not is_utf8(word):
            option = f"{before} " if before.startswith("--") else ""
            raise OptionError(f"{option}{word!a} is not UTF-8 text", "give it in UTF-8, or rename the file", given=word)


def sentence(error: Any, group: Any, arguments: list[str]) -> str:
    """The sentence for an error of the parser.

    Args:
        error: raised by typer; has a `format_message`.
        group: the command line as the parser has it.
        arguments: what was given, without the program's name.
    """
    command, path = called(group, arguments)
    if isinstance(error, _ERRORS.MissingParameter):
        return _missing(error.param, command, path, arguments)
    if isinstance(error, _ERRORS.BadParameter) and error.param is not None:
        return _bad_value(error, arguments)
    if isinstance(error, _ERRORS.NoSuchOption):
        return _no_such_option(error.option_name, command, path)
    if isinstance(error, _ERRORS.BadOptionUsage):
        given = next((word for word in arguments if word.startswith(f"{error.option_name}=")), error.option_name)
        return f"{given} gives a value to an option that takes none; write {error.option_name}"
    if hasattr(command, "commands"):
        return _no_such_command(command, path, arguments)
    if extra := _extra(error, command, path, arguments):
        return (
            f"{path} has no place for '{' '.join(extra)}'; leave it out, write its option before it, or put quotes "
            "around a text with spaces"
        )
    return str(error.format_message())


def out_of_memory(error: Exception, group: Any, arguments: list[str]) -> str:
    """The sentence for an error that says that there is no memory left."""
    command, path = called(group, arguments)
    options = _options(command)
    less = ["a smaller --batch-size"] * ("--batch-size" in options) + ["--dtype bfloat16"] * ("--dtype" in options)
    kept = "; what is complete is kept, and --resume goes on from there" if "--resume" in options else ""
    asked = re.search(r"(\d+) bytes", str(error))
    said = f" ({int(asked[1]):,} bytes more were asked for)" if asked else ""
    advice = f"give {' or '.join(less)}, or " if less else ""
    return f"{path} ran out of memory{said}; {advice}use a machine with more memory{kept}"


def _missing(first: Any, command: Any, path: str, arguments: list[str]) -> str:
    rest = command.params[command.params.index(first) :]
    given = {word.partition("=")[0] for word in arguments}
    lacking = [one for one in rest if one is first or (one.required and given.isdisjoint(one.opts))]
    described = " and ".join(f"{_name(one)} ({_help(one)})" for one in lacking)
    return f"{path} lacks {described}; add {'it' if len(lacking) == 1 else 'them'}, or see {path[:-1]} --help`"


def _bad_value(error: Any, arguments: list[str]) -> str:
    kind, given = error.param.type, f"{_name(error.param)} {shlex.quote(_value(error.param, arguments))}"
    if choices := getattr(kind, "choices", None):
        typed = _value(error.param, arguments)
        return f"{given} is unknown; {did_you_mean(typed, choices, 'give ' + ' or '.join(map(str, choices)))}"
    if kind.name in _NUMBERS:
        what, _, example = _NUMBERS[kind.name].partition(",")
        return f"{given} is not a {what}; give one,{example}"
    return f"{given} cannot be used: {error.message}"


def _value(option: Any, arguments: list[str]) -> str:
    """What was given for an option, as it was typed. Where it was given several times, the last one counts."""
    values = []
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, assigned, value = word.partition("=")
        if name in option.opts:
            values.append(value if assigned else following)
    return values[-1] if values else ""


def _no_such_option(option: str, command: Any, path: str) -> str:
    lacks = f"{path} has no option {option}"
    meant = partial(did_you_mean, option.replace("_", "-"), list(_options(command)))
    if hasattr(command, "commands"):
        return f"{lacks}; {meant('write a command before its options: ' + ', '.join(command.commands))}"
    places = [one for one in command.params if one.param_type_name == "argument"]
    if option.strip("-").upper() in map(_name, places):
        return f"{lacks}; give it without one: {path[:-1]} {' '.join(map(_name, places))}`"
    return f"{lacks}; {meant(f'see {path[:-1]} --help`')}"


def _no_such_command(group: Any, path: str, arguments: list[str]) -> str:
    known = list(group.commands)
    given = next((word for word in arguments[len(path.split()) - 1 :] if not word.startswith("-")), None)
    if given is None:
        return f"{path} needs a command after it; give {', '.join(known)}"
    return f"{path} has no command {given!r}; {did_you_mean(given, known, 'give ' + ', '.join(known))}"


def _extra(error: Any, command: Any, path: str, arguments: list[str]) -> list[str]:
    """What was given that no argument of the command takes."""
    context = getattr(error, "ctx", None)
    if context is None:
        return []
    own = arguments[len(path.split()) - 1 :]
    left: list[str] = command.make_parser(context).parse_args(list(own))[1]
    return left


def called(group: Any, arguments: list[str]) -> tuple[Any, str]:
    """The command that is called, and how it is written."""
    command, words = group, ["layerlens"]
    for word in arguments:
        if word not in getattr(command, "commands", {}):
            break
        command = command.commands[word]
        words.append(word)
    return command, f"`{' '.join(words)}`"


def _options(command: Any) -> dict[str, Any]:
    options = [one for one in command.params if one.param_type_name == "option"]
    return {name: one for one in options for name in (*one.opts, *one.secondary_opts)}


def _is_flag(option: Any) -> bool:
    return bool(getattr(option, "is_flag", False))


def _name(parameter: Any) -> str:
    """As the user writes it: --out, or RUN."""
    if parameter.param_type_name == "option":
        return str(parameter.opts[0])
    return str(parameter.metavar or parameter.name.upper())


def _help(parameter: Any) -> str:
    """The parameter's help as part of a sentence."""
    text = (parameter.help or "").split(" [default")[0].rstrip(".")
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]
