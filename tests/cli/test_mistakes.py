"""Command lines that the parser refuses: one sentence that repeats what was given and says what to do."""

import re

import pytest
import typer

from layerlens.cli import app, mistakes

TRACE = ("trace", "--model", "m", "--out", "OUT", "--dataset", "sample")
GENERATE = ("generate", "--model", "m", "--prompt", "hello")
ABLATE = ("ablate", "--model", "m", "--dataset", "sample", "--out", "OUT")
BENCH = ("bench", "decode", "--model", "m")
MODEL = "--model (hub id, folder, .gguf file, smollm2-135m-instruct or gemma3-270m)"


@pytest.fixture
def refused(cli, tmp_path, monkeypatch):
    """What the command line says to arguments that it refuses before it does anything."""
    monkeypatch.setattr("layerlens.models.load", lambda *_, **__: pytest.fail("a model was loaded"))
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
        (["trace"], f"`layerlens trace` lacks {MODEL} and --out (run directory to write); add them"),
        (["trace", "--model", "m"], "`layerlens trace` lacks --out (run directory to write); add it"),
        (["trace", "--model=m", "--", "--out", "o"], "`layerlens trace` lacks --out (run directory to write); add it"),
        (["generate"], f"`layerlens generate` lacks {MODEL} and --prompt (what to answer); add them"),
        (["generate", "why", "--model", "m"], "`layerlens generate` lacks --prompt (what to answer); add it"),
        (["ablate", "--out=o"], f"`layerlens ablate` lacks {MODEL} and --dataset (name of a dataset"),
        (["bench", "decode"], f"`layerlens bench decode` lacks {MODEL}; add it"),
        (["figure"], "`layerlens figure` lacks NUMBER (number of a figure of the paper, 1 to 12, or all) and --out ("),
        (["table", "--run", "r"], "`layerlens table` lacks NUMBER ("),
        (["report"], "`layerlens report` lacks RUN (run directory); add it"),
        (["compare"], "lacks RUN (run directory) and RUN (run directory of the same prompts); add them"),
        (["compare", "a"], "`layerlens compare` lacks RUN (run directory of the same prompts); add it"),
    ],
)
def test_what_is_lacking_is_named_all_at_once(refused, arguments, lacking):
    said = refused(*arguments)
    assert lacking in said
    assert said.endswith(f"or see `layerlens {' '.join(arguments[: 1 + (arguments[0] == 'bench')])} --help`")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            [*TRACE[:3], "--out", "--resume", *TRACE[5:]],
            "--out is followed by --resume; give it a value (run directory",
        ),
        ([*TRACE[:3], "--out", "", *TRACE[5:]], "--out is followed by an empty text; give it a value (run directory"),
        ([*TRACE[:3], "--out=", *TRACE[5:]], "--out is followed by an empty text; give it a value (run directory"),
        ([*TRACE, "--limit"], "--limit is followed by nothing; give it a value (use the first N prompts)"),
        ([*TRACE, "--window", "--limit=3"], "--window is followed by --limit=3; give it a value (candidate layers"),
        (["trace", "--model", "--help"], "--model is followed by --help; give it a value (hub id,"),
        (["generate", "--prompt", "--model", "m"], "--prompt is followed by --model; give it a value (what to answer)"),
        ([*ABLATE, "--arms", "--p", "1"], "--arms is followed by --p; give it a value (strategies with a p"),
        ([*BENCH, "--json", ""], "--json is followed by an empty text; give it a value (file to write"),
        (["figure", "1", "--run", "", "--out", "OUT"], "--run is followed by an empty text; give it a value"),
        (["table", "5", "--run"], "--run is followed by nothing; give it a value (run directory)"),
        (["report", "r", "--out"], "--out is followed by nothing; give it a value (the file to write"),
        (["compare", "a", "b", "--out"], "--out is followed by nothing; give it a value (directory for comparison.csv"),
    ],
)
def test_an_option_without_a_value_never_takes_the_next_option_for_one(refused, arguments, said):
    assert refused(*arguments).startswith(said)


def test_a_value_may_look_like_an_option_where_that_is_said(cli):
    """With =, after which nothing else can be meant; and what comes after -- is no option."""
    command_line = typer.main.get_command(app)
    mistakes.refuse_missing_values(command_line, ["generate", "--prompt=--compare", "--system", ""])
    mistakes.refuse_missing_values(command_line, ["report", "--", "--out"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*TRACE, "--limit", "x"], "--limit x is no whole number; give one, such as 3"),
        ([*TRACE, "--limit", "3", "--limit=2.5"], "--limit 2.5 is no whole number; give one, such as 3"),
        ([*TRACE, "--limit", "1 is not 2"], "--limit '1 is not 2' is no whole number; give one, such as 3"),
        ([*TRACE, "--temperature", "0,7"], "--temperature 0,7 is no number; give one, such as 0.5"),
        ([*TRACE, "--temperature="], "--temperature '' is no number; give one, such as 0.5"),
        ([*TRACE, "--mode", "live"], "--mode live is unknown; give generate or replay"),
        ([*TRACE, "--positions", "some"], "--positions some is unknown; give generated or all"),
        ([*GENERATE, "--p", "50%"], "--p 50% is no number; give one, such as 0.5"),
        ([*ABLATE, "--repeats", "two"], "--repeats two is no whole number; give one, such as 3"),
        ([*BENCH, "--rounds", "x"], "--rounds x is no whole number; give one, such as 3"),
        ([*TRACE, "--resume=yes"], "--resume=yes gives a value to an option that takes none; write --resume"),
        (["--version=3"], "--version=3 gives a value to an option that takes none; write --version"),
    ],
)
def test_a_value_that_cannot_be_read(refused, arguments, said):
    assert refused(*arguments) == said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trace", "--modle", "m"], "`layerlens trace` has no option --modle; did you mean --mode or --model?"),
        ([*TRACE, "--max_new_tokens", "3"], "has no option --max_new_tokens; did you mean --max-new-tokens"),
        ([*TRACE, "--max-tokens", "3"], "has no option --max-tokens; did you mean --max-new-tokens"),
        ([*TRACE, "--batch", "3"], "`layerlens trace` has no option --batch; did you mean --batch-size?"),
        ([*TRACE, "-n", "3"], "`layerlens trace` has no option -n; see `layerlens trace --help`"),
        ([*GENERATE, "--out", "o"], "`layerlens generate` has no option --out; see `layerlens generate --help`"),
        (
            [*ABLATE, "--strategy", "valley"],
            "`layerlens ablate` has no option --strategy; see `layerlens ablate --help`",
        ),
        (
            ["report", "--run", "r"],
            "`layerlens report` has no option --run; give it without one: `layerlens report RUN`",
        ),
        (["compare", "--run", "a"], "has no option --run; give it without one: `layerlens compare RUN RUN`"),
        (["figure", "--number", "1"], "has no option --number; give it without one: `layerlens figure NUMBER`"),
        (["models", "--all"], "`layerlens models` has no option --all; see `layerlens models --help`"),
        (["--model", "m", "trace"], "`layerlens` has no option --model; write a command before its options: trace, "),
        (["--versoin"], "`layerlens` has no option --versoin; did you mean --version?"),
        (
            ["bench", "--model", "m"],
            "`layerlens bench` has no option --model; write a command before its options: decode",
        ),
    ],
)
def test_an_unknown_option(refused, arguments, said):
    assert said in refused(*arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trase"], "`layerlens` has no command 'trase'; did you mean trace?"),
        (["Trace"], "`layerlens` has no command 'Trace'; did you mean trace?"),
        (["eval", "--model", "m"], "`layerlens` has no command 'eval'; give trace, generate, figure, table, report, "),
        ([""], "`layerlens` has no command ''; give trace, "),
        (["bench"], "`layerlens bench` needs a command after it; give decode"),
        (["bench", "decod"], "`layerlens bench` has no command 'decod'; did you mean decode?"),
        (["bench", "x"], "`layerlens bench` has no command 'x'; give decode"),
    ],
)
def test_an_unknown_command(refused, arguments, said):
    assert refused(*arguments).startswith(said)


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["generate", "--model", "m", "--prompt", "Why", "is", "it (so)?"], "is it (so)?"),
        ([*TRACE, "more"], "more"),
        ([*TRACE, "--no-chat-template", "true"], "true"),
        (["figure", "1", "2", "--out", "OUT"], "2"),
        (["compare", "a", "b", "c"], "c"),
        (["datasets", "list"], "list"),
    ],
)
def test_a_word_without_a_place(refused, arguments, extra):
    said = refused(*arguments)
    assert said.startswith(f"`layerlens {arguments[0]}` has no place for '{extra}'; leave it out, ")
    assert said.endswith("or put quotes around a text with spaces")


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
