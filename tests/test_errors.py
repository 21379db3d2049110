"""Errors have fields, which copies keep, and spell options for whoever called."""

import ast
import copy
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import layerlens as ll
from layerlens import errors
from layerlens.cli import app
from layerlens.cli.spelling import CommandLine
from layerlens.errors import spelled, spelled_command, spelling
from layerlens.records.files import DamagedFile

KINDS = [ll.LayerlensError, ll.ModelError, ll.PromptError, ll.OptionError, ll.RunError, DamagedFile]


class OfMyOwn(errors.OptionError):
    def __init__(self, number):
        super().__init__(f"bad {number}", "good", given=lambda: number)


def test_what_cannot_be_pickled_is_said_instead():
    """As of a strategy that is a lambda, in a pool of processes."""
    error = pickle.loads(pickle.dumps(OfMyOwn(3)))
    assert (type(error), str(error), error.problem, error.advice) == (OfMyOwn, "bad 3; good", "bad 3", "good")
    assert "<lambda>" in error.given


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_a_copy_has_the_same_fields(kind, copied):
    error = kind.about("window", 12, "is wide", "give 1..8")
    for one in (error, copied(error)):
        assert type(one) is kind
        assert str(one) == f"{one.problem}; {one.advice}"
        assert one.problem.split() == ["window", "12", "is", "wide"]
        assert one.advice == "give 1..8"
        assert (one.option, one.given) == ("window", 12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_alone_is_the_problem(kind):
    """As a strategy of somebody's own may raise it."""
    error = kind("too deep")
    assert str(error) == error.problem == "too deep"
    assert (error.advice, error.option, error.given) == ("", None, None)


def typed(*arguments: str) -> CommandLine:
    """The spelling while that command runs."""
    return CommandLine(typer.main.get_command(app), list(arguments))


@pytest.mark.parametrize(
    ("option", "value", "in_python", "on_the_command_line"),
    [
        ("window", 12, "window 12", "--window 12"),
        ("max_new_tokens", 0, "max_new_tokens 0", "--max-new-tokens 0"),
        ("temperature", 0.7, "temperature 0.7", "--temperature 0.7"),
        ("p", 2.0, "p 2.0", "--p 2"),
        ("top_p", None, "top_p=None", "top_p=None"),
        ("criterion", "nix", "criterion 'nix'", "--criterion nix"),
        ("system", "be brief", "system 'be brief'", "--system 'be brief'"),
        ("system", "", "system ''", "--system ''"),
        ("out", Path("a b/c"), "out a b/c", "--out 'a b/c'"),
        ("resume", True, "resume=True", "--resume"),
        ("kl", False, "kl=False", "no --kl"),
        ("chat_template", False, "chat_template=False", "--no-chat-template"),
        ("chat_template", True, "chat_template=True", "chat_template=True"),
        ("generation_config", False, "generation_config=False", "--no-generation-config"),
        ("add_special_tokens", True, "add_special_tokens=True", "--add-special-tokens"),
        ("add_special_tokens", False, "add_special_tokens=False", "--no-add-special-tokens"),
        ("stop_strings", ["a", "b c"], "stop_strings ['a', 'b c']", "--stop-strings a --stop-strings 'b c'"),
        (
            "chat_template_args",
            {"n": 3, "thinks": False},
            "chat_template_args {'n': 3, 'thinks': False}",
            "--chat-template-arg n=3 --chat-template-arg thinks=false",
        ),
        ("arms", ["last", "valley"], "arms ['last', 'valley']", "--arms last,valley"),
        ("strategy", "nix", "strategy 'nix'", "--strategy nix"),
        ("offset", 3, "offset 3", "--strategy last-3"),
        ("shift", -2, "shift -2", "--strategy valley-2"),
        ("shift", 1, "shift 1", "--strategy valley+1"),
        ("eos_token_id", 5, "eos_token_id 5", "eos_token_id 5"),
    ],
)
def test_an_option_is_spelled_for_whoever_called(option, value, in_python, on_the_command_line):
    assert spelled(option, value) == in_python
    with spelling(typed("trace")):
        assert spelled(option, value) == on_the_command_line
    assert spelled(option, value) == in_python


def test_what_is_spelled_alone():
    assert (spelled("max_new_tokens"), spelled("chat_template_args")) == ("max_new_tokens", "chat_template_args")
    assert spelled_command("trace") == "ll.trace"
    with spelling(typed("figure")):  # options of other commands too
        assert (spelled("max_new_tokens"), spelled("chat_template_args")) == ("--max-new-tokens", "--chat-template-arg")
        assert spelled("tokenizer") == "tokenizer"
        assert spelled_command("trace") == "`layerlens trace`"


def test_an_arm_is_a_strategy():
    with spelling(typed("ablate")):
        assert spelled("strategy", "fixed") == "--arms fixed"
        assert spelled("offset", 9) == "--arms last-9"


def test_a_command_leaves_the_spelling_as_it_was(cli, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "layerlens.read_prompts", lambda *_, **__: seen.append(spelled("limit")) or 1 / 0, raising=False
    )
    with pytest.raises(ZeroDivisionError):
        cli("trace", "--model", "m", "--out", "o", "--prompts", "p.txt")
    assert (seen, spelled("limit")) == (["--limit"], "limit")
    assert cli("trace", "--model", "m", "--out", "o")[0] == 2
    assert spelled("limit") == "limit"


def test_no_two_commands_write_an_option_in_two_ways():
    """So that it does not matter which of them an option is looked up in."""
    flags: dict[str, set[tuple[str, ...]]] = {}
    for command in commands(typer.main.get_command(app)):
        for option in command.params:
            if option.param_type_name == "option":
                flags.setdefault(option.name, set()).add((*option.opts, *option.secondary_opts))
    assert len(flags) > 50
    assert {name: ways for name, ways in flags.items() if len(ways) > 1} == {}


def commands(group) -> list:
    """A command line and all that is below it."""
    inner = getattr(group, "commands", {}).values()
    return [group, *(command for one in inner for command in commands(one))]


def test_the_spelling_of_the_whole_process_is_left_even_by_an_error():
    with pytest.raises(ZeroDivisionError), spelling(typed("trace")):
        _ = 1 / 0
    assert type(errors._spelling) is errors.Spelling


ROOT = Path(__file__).resolve().parents[1] / "layerlens"
OURS = {kind.__name__ for kind in KINDS} | {"UnknownHead"}


def raised(root: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every error of ours that is made below a folder, and where."""
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).partition(".")[0] in OURS:
                yield f"{path.relative_to(root)}, line {node.lineno}: {ast.unparse(node)}", node


def lacks_advice(call: ast.Call) -> bool:
    """Whether an error is made without what to do."""
    return len(call.args) < {"about": 4, "at": 2}.get(ast.unparse(call.func).partition(".")[2], 2)


def options_in(root: Path) -> set[str]:
    """Every parameter of a public function, method or command, and every field of a public class."""
    found: set[str] = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name == "__init__"):
                found |= {one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}
            elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                fields = (one.target for one in node.body if isinstance(one, ast.AnnAssign))
                found |= {one.id for one in fields if isinstance(one, ast.Name)}
    return found


def named(root: Path) -> Iterator[tuple[str, str]]:
    """Options that are named in an error or spelled in a message, and where."""
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            options = [one.value for one in node.keywords if one.arg == "option"]
            options += node.args[:1] if name == "spelled" or name.endswith("Error.about") else []
            for option in options:
                if isinstance(option, ast.Constant) and isinstance(option.value, str):
                    yield f"{path.relative_to(root)}, line {node.lineno}", option.value


def test_every_error_says_what_to_do():
    calls = list(raised(ROOT))
    assert len(calls) > 300
    assert [where for where, call in calls if lacks_advice(call)] == []


def test_every_option_that_is_named_is_one():
    options, names = options_in(ROOT), list(named(ROOT))
    assert len(names) > 200
    assert [(where, name) for where, name in names if name not in options] == []


@pytest.mark.parametrize(
    ("line", "without_advice", "unknown"),
    [
        ('raise OptionError("k is 0; give 1")', True, []),
        ('raise OptionError("k is 0", option="k")', True, []),
        ('raise OptionError.about("k", 0, "is too small")', True, []),
        ('raise OptionError.about("k", 0, "is too small", "give 1")', False, []),
        ('raise OptionError.about("kk", 0, "is too small", "give 1")', False, ["kk"]),
        ('raise RunError("k is 0", "give 1", option="nix", given=0)', False, ["nix"]),
        ('raise RunError("k is 0", f"give {spelled(\'nix\', 1)}")', False, ["nix"]),
    ],
)
def test_what_is_missing_is_found(tmp_path, line, without_advice, unknown):
    (tmp_path / "module.py").write_text(f"def most(k):\n    {line}\n")
    assert [lacks_advice(call) for _, call in raised(tmp_path)] == [without_advice]
    options = options_in(tmp_path)
    assert [name for _, name in named(tmp_path) if name not in options] == unknown
