"""What an evaluation asks, without a model, and that somebody else's runner can answer it."""

import dataclasses
import inspect
import itertools
import subprocess
import sys

import pytest

import layerlens as ll
from layerlens.cli import ablate as command
from layerlens.decode.options import GenerateOptions
from layerlens.errors import OptionError, PromptError
from layerlens.evaluation.plan import ARMS, P, arm_strategies, planned, probabilities
from layerlens.evaluation.scoring import WAYS
from tests.refusals import refused

ITEMS = ll.Dataset(
    "gsm8k",
    "main",
    "test",
    None,
    None,
    tuple(ll.Prompt(f"q{n}", f"How many is {n} and 1?", str(n + 1)) for n in range(5)),
)


def test_names_of_arms():
    found = arm_strategies(["trough-p1", "last-m2", "trough", "valley-0002", "last-0"])
    assert list(found) == ["last", "valley+1", "last-2", "valley", "valley-2"]
    assert arm_strategies(["valley", "last-1"], window=4) == {
        "last": ll.Last(),
        "valley": ll.Valley(window=4),
        "last-1": ll.Fixed(1),
    }


def test_probabilities_are_in_order_and_begin_at_0():
    assert probabilities([1, 0.5, 0.5]) == [0.0, 0.5, 1.0]


def test_conditions_are_the_last_layer_once_and_every_other_arm_at_every_p_above_0():
    plan = planned(ITEMS, arms=["last", "valley", "last-1"], p=[0, 0.5, 1], window=3)
    expected = [("last", 0.0, ll.Last())]
    for arm, strategy in (("valley", ll.Valley(window=3)), ("last-1", ll.Fixed(1))):
        expected += [(f"{arm}_p{p}", p, dataclasses.replace(strategy, p=p)) for p in (0.5, 1.0)]
    assert [tuple(condition) for condition in plan.conditions] == expected


@pytest.mark.parametrize(("temperature", "answers"), [(0.0, 5 * (1 + 3 + 1)), (0.7, 5 * 3 * 3)])
def test_only_what_is_drawn_is_answered_again(temperature, answers):
    options = GenerateOptions(temperature=temperature)
    plan = planned(ITEMS, arms=["valley"], p=[0.5, 1], repeats=3, options=options)
    assert plan.n_answers == answers


def test_batches_are_the_items_in_order():
    plan = planned(ITEMS, options=GenerateOptions(batch_size=2))
    assert [len(batch) for batch in plan.batches] == [2, 2, 1]
    assert tuple(itertools.chain(*plan.batches)) == ITEMS.prompts


def test_somebody_elses_runner_can_ask_and_score():
    """A model that adds, and at p = 1 forgets to: a loop of three lines, with nothing of our runner."""
    plan = planned(ITEMS, arms=["valley"], p=[1])
    right = {
        condition.name: [
            WAYS[plan.scoring](f"The answer is {n + (not condition.p)}.", item.reference)
            for n, item in enumerate(plan.dataset)
        ]
        for condition in plan.conditions
    }
    assert right == {"last": [True] * 5, "valley_p1.0": [False] * 5}


def test_a_plan_needs_no_runner():
    program = "import sys, layerlens.evaluation.plan; print('layerlens.evaluation.runner' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("option", "value", "given"),
    [
        ("repeats", 0, 0),
        ("arms", ["dola"], "dola"),
        ("p", [2], 2),
        ("dataset", ll.datasets.from_prompts(["a"]), "prompts"),
    ],
)
def test_what_cannot_be_asked_is_refused(option, value, given):
    with refused(OptionError, option, given):
        planned(**{"dataset": ITEMS, "arms": ["valley"], option: value})


def test_an_item_without_a_reference_is_refused():
    items = dataclasses.replace(ITEMS, prompts=(*ITEMS.prompts, ll.Prompt("q5", "Why?", None)))
    with pytest.raises(PromptError, match="q5"):
        planned(items)


def test_the_defaults_are_figure_3():
    defaults = {name: field.default for name, field in inspect.signature(command.ablate).parameters.items()}
    assert tuple(defaults["arms"].split(",")) == ARMS
    assert tuple(command.probabilities(defaults["p"])) == P
    assert list(planned(ITEMS).strategies) == list(ARMS)


def test_a_list_of_texts_is_no_dataset_that_can_be_scored():
    with refused(OptionError, "dataset", ["one", "two"]):
        planned(["one", "two"])
