"""Options that several commands take: said once, given to every one of them, refused in the command line's words."""

import inspect
from dataclasses import dataclass, fields, replace
from typing import Annotated

import pytest
import typer

import layerlens as ll
from layerlens.cli import app, asking, options
from layerlens.decode.options import GenerateOptions
from layerlens.models import tiny_model, tiny_tokenizer
from layerlens.records.evaluation import read_answers
from layerlens.records.evaluation import read_manifest as read_evaluation
from layerlens.records.manifest import read_manifest
from tests.needs_inspect import needs_inspect
from tests.refusals import refused

GROUPS = {
    "trace": (options.Decoding, options.StrategyOptions, options.Loading),
    "generate": (options.Decoding, options.StrategyOptions, options.Loading),
    "ablate": (asking.Items, asking.Scoring, asking.Answering, options.Wrapping, options.Loading),
    "eval": (asking.Items, asking.Scoring, asking.Answering, options.Wrapping, options.Readings, options.Loading),
    "bench decode": (options.StrategyOptions, options.Loading),
    "doctor": (options.Loading,),
    "fit-lens linear": (options.Loading,),
    "fit-lens tuned": (options.Loading,),
    "fit-lens jacobian": (options.Loading,),
}


def test_a_group_stands_for_its_options():
    @dataclass(frozen=True)
    class Group:
        size: Annotated[int, typer.Option(help="How large.")] = 3
        name: Annotated[str | None, typer.Option()] = None

    @options.grouped
    def command(*, first: str, group: Group, last: bool = False) -> tuple[str, Group, bool]:
        """What it does."""
        return first, group, last

    assert list(inspect.signature(command).parameters) == ["first", "size", "name", "last"]
    assert command.__doc__ == "What it does."
    assert command(first="a", size=4, name="b", last=True) == ("a", Group(4, "b"), True)
    alone = typer.Typer()
    alone.command()(command)
    assert alone(["a", "--name", "b"], standalone_mode=False) == ("a", Group(3, "b"), False)


@pytest.mark.parametrize("path", GROUPS)
def test_every_option_of_a_group_is_there_with_its_default(path):
    command = typer.main.get_command(app)
    for word in path.split():
        command = command.commands[word]
    there = {parameter.name: parameter for parameter in command.params}
    for group in GROUPS[path]:
        for field in fields(group):
            flag = f"--{field.name.replace('_', '-')}"
            assert there[field.name].opts == [flag]
            assert there[field.name].secondary_opts in ([], [flag.replace("--", "--no-")])
            assert there[field.name].default == field.default
    assert len(there) == len(command.params)


def test_what_is_given_reaches_the_run(cli, tiny_folder, tmp_path):
    given = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_new_tokens": 1, "repetition_penalty": 1.1, "seed": 3}
    flags = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
    flags += ["--stop-strings", "x", "--stop-strings", "y z", "--no-chat-template", "--dtype", "bfloat16"]
    flags += ["--no-add-special-tokens"]
    common = ["--model", tiny_folder("llama"), "--dataset", "sample", "--limit", 2, "--max-new-tokens", 2, *flags]
    assert (
        cli("trace", *common, "--strategy", "valley", "--p", 0.5, "--scan", "lazy", "--kl", "--out", tmp_path / "run")[
            0
        ]
        == 0
    )
    expected = GenerateOptions(**given, max_new_tokens=2, stop_strings=("x", "y z"), chat_template=False)
    expected = replace(expected, add_special_tokens=False, generation_config=None)  # which says nothing here
    manifest = read_manifest(tmp_path / "run")
    assert manifest["seed"] == 3
    assert manifest["model"]["dtype"] == "bfloat16"
    for field in fields(GenerateOptions):
        if field.name != "seed":
            value = manifest["options"][field.name]
            assert (tuple(value) if isinstance(value, list) else value) == getattr(expected, field.name), field.name
    assert manifest["options"]["kl"] is True
    strategy = manifest["strategy"]
    assert (strategy["name"], strategy["p"], strategy["scan"]) == ("valley", 0.5, "lazy")


@needs_inspect
@pytest.mark.parametrize(
    "command", [("ablate", "--arms", "valley", "--p", "0.5,1"), ("eval", "--strategies", "valley")]
)
def test_what_is_given_reaches_an_evaluation(cli, tiny_folder, tmp_path, command):
    given = {"max_new_tokens": 2, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "seed": 3, "epochs": 2, "window": 3}
    flags = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
    flags += ["--no-chat-template", "--no-add-special-tokens", "--dtype", "bfloat16", "--limit", "sample=2"]
    code, _, err = cli(
        *command, "--model", tiny_folder("llama"), "--tasks", "sample", *flags, "--out", tmp_path / "out"
    )
    assert (code, err) == (0, "")
    manifest = read_evaluation(tmp_path / "out")
    sampling = {"temperature": 0.7, "top_p": 0.9, "top_k": 5}
    assert manifest["seed"] == 3
    assert manifest["model"]["dtype"] == "bfloat16"
    assert manifest["options"]["epochs"] == 2
    assert manifest["generation"] == {"chat_template": False, "add_special_tokens": False}
    assert manifest["evaluation"]["tasks"]["sample"]["config"] == {"max_tokens": 2, "seed": 3, **sampling}
    assert len(manifest["evaluation"]["tasks"]["sample"]["items"]) == 2
    assert manifest["evaluation"]["arms"]["valley"] == {"strategy": "valley", "window": 3}
    answers = read_answers(tmp_path / "out").to_pandas()
    assert len(answers) == 2 * 2 * len(manifest["evaluation"]["arms"])
    assert (answers["n_generated_tokens"] <= 2).all()


@needs_inspect
def test_items_without_a_chat_template_are_answered_as_generate_answers(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    model = ll.load(tiny_model("llama"), tokenizer=tokenizer)
    (item,) = ll.dataset("sample", limit=1)
    few = {"max_new_tokens": 6, "chat_template": False}
    ll.ablate(model, ["sample"], arms=["valley"], p=[1], limit=1, out=tmp_path / "out", **few)
    alone = {"last": ll.Last(), "valley": ll.Valley()}
    answers = read_answers(tmp_path / "out").to_pandas().set_index("arm")
    for arm, strategy in alone.items():
        found = ll.generate(model, item.content, strategy=strategy, **few)
        row = answers.loc[arm]
        assert (row["outcome"], row["n_prompt_tokens"]) == ("scored", len(tokenizer(item.content).input_ids))
        assert row["n_generated_tokens"] == len(found.token_ids)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--strategy", "valley", "--p", "2"], "--p 2 "),
        (["--strategy", "valley", "--criterion", "nix"], "--criterion nix "),
        (["--strategy", "valley", "--scan", "slow"], "--scan slow "),
        (["--strategy", "valley", "--entropy-floor", "-1"], "--entropy-floor -1 "),
        (["--strategy", "last", "--p", "0.5"], "--p 0.5 "),
        (["--strategy", "nix"], "--strategy nix "),
        (["--strategy", "last-99"], "--strategy last-99 "),
        (["--strategy", "valley", "--window", "99"], "--window 99 "),
    ],
)
@pytest.mark.parametrize("command", ["trace", "generate", "bench decode"])
def test_a_strategy_that_cannot_be_is_refused_by_its_flag(cli, tiny_folder, tmp_path, command, arguments, said):
    own = {"trace": ["--dataset", "sample", "--out", tmp_path / "out"], "generate": ["--prompt", "a"]}
    few = ["--max-new-tokens", 2]
    code, _, err = cli(*command.split(), "--model", tiny_folder("llama"), *few, *own.get(command, []), *arguments)
    assert code == 2
    assert err.startswith(f"layerlens: {said}")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_farthest_layer_that_is_offered_fits(tiny_llama):
    for offset in (0, 3):
        ll.Fixed(offset).fit(tiny_llama.n_layers, tiny_llama.tied)
    with refused(ll.OptionError, "offset", 4):
        ll.Fixed(4).fit(tiny_llama.n_layers, tiny_llama.tied)


def test_variables_of_a_chat_template_are_json(cli, tmp_path):
    words = ["enable_thinking=false", "n=3", 'style="x=y"', "tools=[]", "none=null"]
    given = {"enable_thinking": False, "n": 3, "style": "x=y", "tools": [], "none": None}
    assert options.variables_of(words) == given
    settings = options.Decoding(chat_template_arg=words, add_special_tokens=True).settings(max_new_tokens=1)
    assert GenerateOptions(**settings).chat_template_args == given
    assert GenerateOptions(**settings).add_special_tokens is True
    assert GenerateOptions(**options.Decoding().settings()).chat_template_args is None
    for wrong in (["thinks"], ["=1"], ["thinks=False"], ["thinks="], ["a=1", "a=1"]):
        flags = [word for one in wrong for word in ("--chat-template-arg", one)]
        code, _, err = cli("trace", "--model", "m", "--dataset", "sample", "--out", tmp_path / "out", *flags)
        assert (code, len(err.splitlines())) == (2, 1)
        assert err.split()[1:3] == ["--chat-template-arg", wrong[-1]]
