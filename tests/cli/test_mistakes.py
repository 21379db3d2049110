"""Command lines that the parser refuses: one sentence that repeats what was given and says what to do."""

import re
import shlex

import pytest
import typer

from layerlens.cli import app, mistakes
from layerlens.errors import OptionError
from tests import refusals

TRACE = ("trace", "--model", "m", "--out", "OUT", "--dataset", "sample")
GENERATE = ("generate", "--model", "m", "--prompt", "hello")
ABLATE = ("ablate", "--model", "m", "--tasks", "sample", "--out", "OUT")
BENCH = ("bench", "decode", "--model", "m")


@pytest.fixture
def refused(cli, tmp_path, monkeypatch):
    """What the command line says to arguments that it refuses before it does anything."""
    monkeypatch.setattr("layerlens.models.load", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setattr("layerlens.models.locate.refuse_unloadable", lambda *_: None)
    out = tmp_path / "out"

    def run(*arguments):
        code, said, err = cli(*(str(out) if argument == "OUT" else argument for argument in arguments))
        assert (code, said) == (2, "")
        assert re.fullmatch(r"layerlens: [^\n]+\n", err)
        assert not set(err) & set("│╭╰─")
        assert not out.exists()
        return err.removeprefix("layerlens: ").rstrip("\n")

    return run


@pytest.mark.parametrize(
    ("arguments", "lacking"),
    [
        (["trace"], ["--model", "--out"]),
        (["trace", "--model", "m"], ["--out"]),
        (["trace", "--model=m", "--", "--out", "o"], ["--out"]),
        (["generate"], ["--model", "--prompt"]),
        (["generate", "why", "--model", "m"], ["--prompt"]),
        (["ablate", "--model=m"], ["--out"]),
        (["bench", "decode"], ["--model"]),
        (["figure"], ["NUMBER", "--out"]),
        (["table", "--run", "r"], ["NUMBER"]),
        (["report"], ["RUN"]),
        (["compare"], ["RUN", "RUN"]),
        (["compare", "a"], ["RUN"]),
    ],
)
def test_what_is_lacking_is_named_all_at_once(refused, arguments, lacking):
    said = refused(*arguments)
    command = " ".join(["layerlens", *arguments[: 1 + (arguments[0] == "bench")]])
    assert said.startswith(f"`{command}` lacks ")
    assert re.findall(r"(--[a-z-]+|[A-Z]+) \(", said) == lacking
    assert said.endswith(f" `{command} --help`")


@pytest.mark.parametrize(
    ("arguments", "option", "given"),
    [
        ([*TRACE[:3], "--out", "--resume", *TRACE[5:]], "out", "--resume"),
        ([*TRACE[:3], "--out", "", *TRACE[5:]], "out", ""),
        ([*TRACE[:3], "--out=", *TRACE[5:]], "out", ""),
        ([*TRACE, "--limit"], "limit", None),
        ([*TRACE, "--window", "--limit=3"], "window", "--limit=3"),
        (["trace", "--model", "--help"], "model", "--help"),
        (["generate", "--prompt", "--model", "m"], "prompt", "--model"),
        ([*ABLATE, "--arms", "--p", "1"], "arms", "--p"),
        ([*BENCH, "--json", ""], "json", ""),
        (["figure", "1", "--run", "", "--out", "OUT"], "run", ""),
        (["table", "5", "--run"], "run", None),
        (["report", "r", "--out"], "out", None),
        (["compare", "a", "b", "--out"], "out", None),
    ],
)
def test_an_option_without_a_value_never_takes_the_next_option_for_one(refused, arguments, option, given):
    with refusals.refused(OptionError, option, given, advice="a value"):
        mistakes.refuse_missing_values(typer.main.get_command(app), arguments)
    assert refused(*arguments).startswith(f"--{option} is followed")


def test_a_value_may_look_like_an_option_where_that_is_said(cli):
    """With =, after which nothing else can be meant; and what comes after -- is no option."""
    command_line = typer.main.get_command(app)
    mistakes.refuse_missing_values(command_line, ["generate", "--prompt=--compare", "--system", ""])
    mistakes.refuse_missing_values(command_line, ["report", "--", "--out"])


@pytest.mark.parametrize(
    ("arguments", "option", "value", "advised"),
    [
        ([*TRACE, "--limit", "x"], "--limit", "x", "3"),
        ([*TRACE, "--limit", "3", "--limit=2.5"], "--limit", "2.5", "3"),
        ([*TRACE, "--limit", "1 is not 2"], "--limit", "1 is not 2", "3"),
        ([*TRACE, "--temperature", "0,7"], "--temperature", "0,7", "0.5"),
        ([*TRACE, "--temperature="], "--temperature", "", "0.5"),
        ([*TRACE, "--mode", "live"], "--mode", "live", "replay"),
        ([*TRACE, "--positions", "some"], "--positions", "some", "generated"),
        ([*GENERATE, "--p", "50%"], "--p", "50%", "0.5"),
        ([*ABLATE, "--epochs", "two"], "--epochs", "two", "3"),
        ([*BENCH, "--rounds", "x"], "--rounds", "x", "3"),
    ],
)
def test_a_value_that_cannot_be_read(refused, arguments, option, value, advised):
    problem, advice = refused(*arguments).split("; ")
    assert shlex.split(problem)[:3] == [option, value, "is"]
    assert advised in advice.split()


@pytest.mark.parametrize("arguments", [[*TRACE, "--resume=yes"], ["--version=3"]])
def test_a_value_for_an_option_that_takes_none(refused, arguments):
    problem, advice = refused(*arguments).split("; ")
    assert problem.startswith(f"{arguments[-1]} gives")
    assert advice.split()[-1] == arguments[-1].partition("=")[0]


@pytest.mark.parametrize(
    ("arguments", "command", "option", "advised"),
    [
        (["trace", "--modle", "m"], "layerlens trace", "--modle", ["--mode", "--model"]),
        ([*TRACE, "--max_new_tokens", "3"], "layerlens trace", "--max_new_tokens", ["--max-new-tokens"]),
        ([*TRACE, "--max-tokens", "3"], "layerlens trace", "--max-tokens", ["--max-new-tokens"]),
        ([*TRACE, "--batch", "3"], "layerlens trace", "--batch", ["--batch-size"]),
        ([*TRACE, "-n", "3"], "layerlens trace", "-n", ["--help"]),
        ([*GENERATE, "--out", "o"], "layerlens generate", "--out", ["--help"]),
        ([*ABLATE, "--strategy", "valley"], "layerlens ablate", "--strategy", ["--help"]),
        (["report", "--run", "r"], "layerlens report", "--run", ["report", "RUN"]),
        (["compare", "--run", "a"], "layerlens compare", "--run", ["compare", "RUN"]),
        (["figure", "--number", "1"], "layerlens figure", "--number", ["figure", "NUMBER"]),
        (["models", "--all"], "layerlens models", "--all", ["models", "--help"]),
        (["--model", "m", "trace"], "layerlens", "--model", ["command", "trace"]),
        (["--versoin"], "layerlens", "--versoin", ["--version"]),
        (["bench", "--model", "m"], "layerlens bench", "--model", ["command", "decode"]),
    ],
)
def test_an_unknown_option(refused, arguments, command, option, advised):
    problem, advice = refused(*arguments).split("; ")
    assert problem.startswith(f"`{command}` has ")
    assert problem.endswith(f" option {option}")
    assert set(advised) <= set(re.findall(r"[\w-]+", advice))


@pytest.mark.parametrize(
    ("arguments", "given", "advised"),
    [
        (["trase"], "'trase'", ["trace"]),
        (["Trace"], "'Trace'", ["trace"]),
        (["measure", "--model", "m"], "'measure'", ["trace", "generate", "figure", "table", "report"]),
        ([""], "''", ["trace"]),
        (["bench"], "`layerlens bench`", ["decode"]),
        (["bench", "decod"], "'decod'", ["decode"]),
        (["bench", "x"], "'x'", ["decode"]),
    ],
)
def test_an_unknown_command(refused, arguments, given, advised):
    problem, advice = refused(*arguments).split("; ")
    assert " command " in problem
    assert given in problem
    assert set(advised) <= set(re.findall(r"[\w-]+", advice))


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["generate", "--model", "m", "--prompt", "Why", "is", "(it)?"], "is (it)?"),
        ([*TRACE, "more"], "more"),
        ([*TRACE, "--no-chat-template", "true"], "true"),
        (["figure", "1", "2", "--out", "OUT"], "2"),
        (["compare", "a", "b", "c"], "c"),
        (["datasets", "list"], "list"),
    ],
)
def test_a_word_without_a_place(refused, arguments, extra):
    problem, advice = refused(*arguments).split("; ")
    assert problem.startswith(f"`layerlens {arguments[0]}` ")
    assert "no place" in problem
    assert problem.endswith(f" '{extra}'")
    assert "quotes" in advice


def test_a_word_with_a_line_break_is_one_sentence_too(refused):
    assert refused("datasets", "a\nlist").startswith("`layerlens datasets` has no place for 'a")


@pytest.mark.parametrize("asked", [["-h"], ["trace", "-h"], ["bench", "decode", "-h"]])
def test_help_may_be_asked_for_in_short(cli, asked):
    code, out, err = cli(*asked)
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: layerlens {' '.join(asked[:-1])}".rstrip())


def test_whatever_else_the_parser_says_is_passed_on():
    """Such as an error of a version of typer that is yet to come."""

    class Error(Exception):
        def format_message(self):
            return "the moon is full"

    assert mistakes.sentence(Error(), typer.main.get_command(app), ["trace"]) == "the moon is full"
