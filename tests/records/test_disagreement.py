"""What a run was begun with beside what is given now: every entry that makes the rows is said, and nothing else."""

import copy
from dataclasses import MISSING, fields

import pytest
import typer

import layerlens as ll
from layerlens.cli import app
from layerlens.cli.spelling import CommandLine
from layerlens.errors import spelling
from layerlens.records.disagreement import _STRATEGY_DEFAULTS, disagreement
from layerlens.records.evaluation import EvaluationWriter
from layerlens.records.evaluation import read_manifest as read_evaluation
from layerlens.records.manifest import read_manifest
from tests.evaluation.made_up import drawn, write_ablation
from tests.needs_inspect import needs_inspect
from tests.refusals import refused

CIRCUMSTANCES = {"created", "command", "hardware", "totals"}
OTHER = {"strategy__name": "another", "strategy__shift": 2}
OTHER |= {"options__chat_template_args": {"thinks": False}}
"""Where something else has to be of the same type."""


@pytest.fixture
def typed():
    """Inside, options are spelled as on the command line."""
    with spelling(CommandLine(typer.main.get_command(app), ["trace"])):
        yield


@pytest.fixture(scope="module")
def manifests(tiny_llama, tmp_path_factory):
    """Of a trace."""
    folder = tmp_path_factory.mktemp("begun")
    few = {"max_new_tokens": 2, "progress": False}
    ll.trace(tiny_llama, ["a", "b"], out=folder / "run", strategy=ll.Valley(window=3, shift=-1), **few)
    return {"run": read_manifest(folder / "run")}


def changed(manifest, **entries):
    """A copy with other entries, named like options__seed."""
    other = copy.deepcopy(manifest)
    for name, value in entries.items():
        section, _, key = name.rpartition("__")
        (other[section] if section else other)[key] = value
    return other


def halves(found):
    """What a run was begun with, and what it is not continued with."""
    return found.split(", not with ")


def test_whatever_makes_the_rows_is_said_when_it_alone_differs(manifests):
    assert_each_entry_is_said(manifests["run"], more_than=30)


@needs_inspect
def test_whatever_makes_answers_is_said_when_it_alone_differs(tiny_llama, tmp_path):
    wrapping = {"add_special_tokens": True, "min_new_tokens": 1, "repetition_penalty": 1.1}
    few = {"arms": ["valley", "last-1"], "p": [0.5, 1], "limit": 1, "max_new_tokens": 2}
    ll.ablate(tiny_llama, ["sample"], out=tmp_path / "ablation", **few, **wrapping)
    manifest = read_evaluation(tmp_path / "ablation")
    del manifest["evaluation"]  # whose tasks and arms are compared one by one
    assert manifest["generation"] == wrapping
    assert_each_entry_is_said(manifest, more_than=25)


def assert_each_entry_is_said(manifest, *, more_than):
    n_entries = 0
    assert disagreement(manifest, copy.deepcopy(manifest)) is None
    for name, value in manifest.items():
        for key in value if isinstance(value, dict) else [None]:
            spelled = name if key is None else f"{name}__{key}"
            found = disagreement(changed(manifest, **{spelled: OTHER.get(spelled, ["something else"])}), manifest)
            if name in CIRCUMSTANCES or spelled in ("model__source", "strategy__scan", "strategy_code"):
                assert found is None, spelled  # nothing follows from the first three; one of the two says no code here
            else:
                assert found, spelled
                n_entries += 1
    assert n_entries > more_than


@pytest.mark.parametrize(
    ("now", "begun", "given"),
    [
        ({"seed": 4}, "--seed 0", "--seed 4"),
        ({"options__temperature": 0.7}, "--temperature 0", "--temperature 0.7"),
        ({"options__system": "short"}, "no --system", "--system short"),
        (
            {"options__chat_template_args": {"n": 3, "thinks": False}, "dataset__prompts_sha256": "0"},
            "no --chat-template-arg",
            "--chat-template-arg n=3 --chat-template-arg thinks=false",
        ),
        ({"options__add_special_tokens": False}, "no --add-special-tokens", "--no-add-special-tokens"),
        ({"options__stop_strings": ["a", "b"]}, "no --stop-strings", "--stop-strings a --stop-strings b"),
        ({"options__chat_template": True}, "--no-chat-template", "a chat template"),
        ({"options__do_sample": True}, "no do_sample", "do_sample=True"),
        ({"model__device": "cuda:0"}, "--device cpu", "--device cuda:0"),
        ({"model__fingerprint": "x", "model__source": "b/c"}, "--model LlamaForCausalLM", "--model b/c"),
        ({"model__fingerprint": "x", "model__dtype": "float16"}, "--dtype float32", "--dtype float16"),
        ({"dataset__name": "p.txt", "dataset__rows": 7}, "a list of prompts", "--prompts p.txt"),
        ({"dataset__name": "gsm8k", "dataset__config": "main"}, "a list of prompts", "--dataset gsm8k"),
        ({"dataset__rows": 7, "batches": [["0"]]}, "--limit 2", "--limit 7"),
        ({"options__batch_size": 2, "batches": [["0", "1"]]}, "--batch-size 1", "--batch-size 2"),
        ({"dataset__prompts_sha256": "x", "seed": 4}, "--seed 0", "--seed 4"),
        ({"mode": "replay", "padding": "right"}, "--mode generate", "--mode replay"),
        ({"window": 2, "options__window": 2, "strategy__window": 2}, "--window 3", "--window 2"),
        ({"strategy__window": 2}, "a strategy's window 3", "a strategy's window 2"),
        ({"window": 2, "options__window": 2}, "--window 3", "--window 2"),
        (
            {"window": 4, "strategy__window": 2},
            "a strategy's window 3, --window 3",
            "a strategy's window 2, --window 4",
        ),
        ({"strategy__shift": 0, "strategy__p": 0.5}, "--strategy valley-1, --p 1", "--strategy valley, --p 0.5"),
        ({"strategy": {"name": "last"}}, "--strategy valley-1", "--strategy last"),
        ({"strategy": {"name": "fixed", "offset": 2, "p": 1.0}}, "--strategy valley-1", "--strategy last-2"),
        (
            {"strategy": {"name": "dola", "candidates": "low", "alpha": 0.1}},
            "--strategy valley-1",
            "--strategy dola-low",
        ),
        ({"options__system": "x" * 100}, "no --system", f"--system '{'x' * 56} ...'"),
    ],
)
def test_it_is_said_as_the_command_line_takes_it_without_what_follows_from_it(typed, manifests, now, begun, given):
    assert halves(disagreement(changed(manifests["run"], **now), manifests["run"])) == [begun, given]


@pytest.mark.parametrize(
    ("now", "word"),
    [
        ({"model__fingerprint": "x", "model__n_layers": 9}, "weights"),
        ({"dataset__prompts_sha256": "x"}, "prompts"),
        ({"chat_template_sha256": "x"}, "template"),
    ],
)
def test_what_says_nothing_to_a_user_is_called_another(typed, manifests, now, word):
    (found,) = halves(disagreement(changed(manifests["run"], **now), manifests["run"]))
    assert found.split()[0] in ("other", "another")
    assert word in found.split()


def test_the_versions_of_libraries(typed, manifests):
    found = disagreement(changed(manifests["run"], versions__torch="0.1"), manifests["run"])
    assert halves(found)[1] == "torch 0.1"


@pytest.mark.parametrize(
    ("now", "begun", "given"),
    [
        ({"seed": 4}, "seed 0", "seed 4"),
        ({"options__system": "short"}, "no system", "system 'short'"),
        ({"options__add_special_tokens": False}, "no add_special_tokens", "add_special_tokens=False"),
        ({"options__chat_template": True}, "chat_template=False", "a chat template"),
        ({"options__chat_template_args": {"n": 3}}, "no chat_template_args", "chat_template_args {'n': 3}"),
        ({"dataset__name": "p.txt", "dataset__rows": 7}, "a list of prompts", "prompts 'p.txt'"),
        ({"strategy__shift": 0, "strategy__p": 0.5}, "strategy 'valley-1', p 1.0", "strategy 'valley', p 0.5"),
        ({"options__eos_token_id": [2]}, "no eos_token_id", "eos_token_id [2]"),
    ],
)
def test_in_python_it_is_said_in_the_words_of_python(manifests, now, begun, given):
    assert halves(disagreement(changed(manifests["run"], **now), manifests["run"])) == [begun, given]


@pytest.fixture
def ablation(tmp_path):
    """A directory with an ablation, its manifest, and what asks for it with other options."""
    answers = drawn({("last", 0.0): 0.5, ("valley", 0.5): 0.5, ("valley", 1.0): 0.5}, n_items=3)
    folder = write_ablation(tmp_path / "ablation", answers)
    begun = read_evaluation(folder)

    def ask(part, name, **options):
        manifest = copy.deepcopy(begun)
        manifest["evaluation"][part].setdefault(name, {}).update(options)
        with EvaluationWriter(folder, manifest) as writer:
            return writer.manifest["evaluation"]

    return folder, begun, ask


@pytest.mark.parametrize(
    ("part", "name", "options"),
    [
        ("arms", "valley", {"window": 3}),
        ("arms", "valley_p0.5", {"strategy": "valley-1"}),
        ("tasks", "gsm8k", {"items": ["item-000"]}),
        ("tasks", "gsm8k", {"items_sha256": "another"}),
        ("tasks", "gsm8k", {"config": {"temperature": 0.5}}),
    ],
)
def test_an_ablation_is_not_continued_with_other_options_of_an_arm_or_a_task(ablation, part, name, options):
    folder, begun, ask = ablation
    with refused(ll.RunError, "out", name, problem=name):
        ask(part, name, **options)
    assert read_evaluation(folder) == begun


@pytest.mark.parametrize(("part", "name"), [("arms", "valley_p0.25"), ("tasks", "math500")])
def test_an_ablation_is_extended_by_arms_and_tasks(ablation, part, name):
    _, begun, ask = ablation
    assert ask(part, name)[part] == begun["evaluation"][part] | {name: {}}


@pytest.mark.parametrize("option", ["chat_template", "add_special_tokens", "generation_config"])
def test_an_evaluation_is_not_continued_with_prompts_that_are_wrapped_otherwise(manifests, option):
    """Nothing is written of an option that was not given, which is not the same as giving False."""
    plain, other = (manifests["run"] | {"generation": wrapping} for wrapping in ({}, {option: False}))
    assert disagreement(other, plain)
    assert disagreement(plain, other)


@pytest.mark.parametrize(
    ("wrapping", "said"),
    [
        ({"add_special_tokens": True}, "--add-special-tokens"),
        ({"chat_template_args": {"n": 3}}, "--chat-template-arg n=3"),
    ],
)
def test_the_wrapping_of_an_evaluation_is_said_as_the_command_line_takes_it(typed, manifests, wrapping, said):
    plain, other = (manifests["run"] | {"generation": one} for one in ({}, wrapping))
    assert halves(disagreement(other, plain))[1] == said


@pytest.mark.parametrize(
    ("ours", "theirs", "agree"),
    [
        ({"name": "valley", "window": None}, {"name": "valley", "window": 4}, True),  # of 4 layers
        ({"name": "valley", "window": None}, {"name": "valley", "window": 3}, False),
        ({"name": "valley", "window": 4}, {"name": "valley", "window": 4, "p": 1.0, "entropy_floor": 0.0}, True),
        ({"name": "valley", "scan": "lazy"}, {"name": "valley", "scan": "batched"}, True),
        ({"name": "mine", "scan": "lazy"}, {"name": "mine", "scan": "batched"}, False),
        ({"name": "mine", "window": None}, {"name": "mine", "window": 4}, False),  # what None means is its own affair
        ({"name": "mine", "flag": False}, {"name": "mine", "flag": None}, False),
        ({"name": "mine", "flag": False}, {"name": "mine", "flag": True}, False),
        ({"name": "mine", "layers": (1, 2)}, {"name": "mine", "layers": [1, 2]}, True),
        ({"name": "mine", "layers": (1, 2)}, {"name": "mine", "layers": [2, 1]}, False),
        ({"name": "mine", "floor": float("nan")}, {"name": "mine", "floor": float("nan")}, True),
        ({"name": "mine", "floor": float("nan")}, {"name": "mine", "floor": 0.0}, False),
        ({"name": "mine", "rate": 2}, {"name": "mine", "rate": 2.0}, True),
        ({"name": "mine", "by": {"1": 2}}, {"name": "mine", "by": {"1": 3}}, False),
        ({"name": "mine"}, {"name": "yours"}, False),
    ],
)
def test_every_option_of_a_strategy_counts(manifests, ours, theirs, agree):
    pair = [changed(manifests["run"], strategy=strategy) for strategy in (ours, theirs)]
    assert (disagreement(*pair) is None) == agree
    assert (disagreement(*reversed(pair)) is None) == agree


def test_a_class_that_was_edited_is_another_strategy_where_both_runs_tell_its_code(typed, manifests):
    old, begun, edited = (changed(manifests["run"], strategy_code=code) for code in (None, "1f", "2e"))
    assert disagreement(edited, begun) == "other code of its strategy"
    assert disagreement(begun, copy.deepcopy(begun)) is disagreement(begun, old) is disagreement(old, begun) is None
    del old["strategy_code"]  # as runs were written before
    assert disagreement(begun, old) is None
    both = changed(edited, strategy={"name": "last"})
    assert disagreement(both, begun) == "--strategy valley-1, not with --strategy last"


def test_an_option_that_is_off_is_not_missed_in_an_older_run(manifests):
    assert disagreement(changed(manifests["run"], options__newer=False), manifests["run"]) is None
    newer = changed(manifests["run"], options__newer=True)
    assert disagreement(newer, manifests["run"]) == "no newer, not with newer=True"


def test_what_a_valley_is_without_options():
    declared = {field.name: field.default for field in fields(ll.Valley) if field.default is not MISSING}
    assert {name: declared[name] for name in _STRATEGY_DEFAULTS} == _STRATEGY_DEFAULTS


def test_a_run_can_be_continued_with_what_the_refusal_names(tiny_llama, tmp_path):
    """Also where that was the default: a window of 4 is what none means for four layers."""
    few = {"max_new_tokens": 2, "progress": False, "out": tmp_path / "run"}
    ll.trace(tiny_llama, ["a"], strategy=ll.Valley(), **few)
    with refused(ll.RunError, given=tmp_path / "run", problem=" window 4,"):
        ll.trace(tiny_llama, ["a"], strategy=ll.Valley(window=3), resume=True, **few)
    ll.trace(tiny_llama, ["a"], strategy=ll.Valley(window=4), resume=True, **few)
