"""What a manifest says of options and of code: the same for the same, in another process too, and nothing else."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch

import layerlens as ll
from layerlens.decode.identity import attributes_of, code_of, recorded
from layerlens.decode.registry import strategy_record


class Kind(Enum):
    one = 1
    two = 2


class Slotted:
    __slots__ = ("rate",)

    def __init__(self, rate):
        self.rate = rate


class Twin:
    __slots__ = ("rate",)

    def __init__(self, rate):
        self.rate = rate


@dataclass(frozen=True)
class Holder:
    weights: object


LONG = np.arange(5000)  # numpy shows its ends only


@pytest.mark.parametrize(
    ("value", "same", "other"),
    [
        (LONG, np.arange(5000), np.where(LONG == 2500, 0, LONG)),
        (torch.zeros(3), torch.zeros(3), torch.zeros(3, dtype=torch.float64)),
        (torch.zeros(3), torch.zeros(3), torch.zeros(3, dtype=torch.int32)),
        (torch.zeros(3), torch.zeros(3), torch.zeros(3, 1)),
        (torch.tensor(1.0), torch.tensor(1.0), torch.tensor(2.0)),
        (torch.zeros(5000, dtype=torch.bfloat16), torch.zeros(5000, dtype=torch.bfloat16), torch.ones(5000)),
        (np.int64(4), 4, 5),
        (np.float32(0.5), 0.5, 0.25),
        (Kind.one, Kind.one, Kind.two),
        (Path("a"), Path("a"), Path("b")),
        ({"b", "a", "c"}, {"c", "b", "a"}, {"a", "b"}),
        ({1: LONG}, {1: LONG.copy()}, {1: LONG + 1}),
        ((LONG,), (LONG.copy(),), (LONG + 1,)),
        ({0, 8}, {8, 0}, {0, 9}),
        (Slotted(1), Slotted(1), Slotted(2)),
        (Slotted(1), Slotted(1), Twin(1)),
        (Holder(1), Holder(1), type("Holder", (Holder,), {"more": 2})(1)),
        (Holder(Holder(LONG)), Holder(Holder(LONG.copy())), Holder(Holder(LONG + 1))),
        (lambda x: x + 1, lambda x: x + 1, lambda x: x + 2),
        (ll.Valley(window=2), ll.Valley(window=2), ll.Valley(window=4)),
        (torch.float16, torch.float16, torch.float32),
        (torch.nn.Linear(2, 1).requires_grad_(False), None, torch.nn.Linear(2, 1)),
    ],
)
def test_a_value_is_told_by_what_is_in_it(value, same, other):
    told = json.loads(json.dumps(recorded(value)))
    assert told == json.loads(json.dumps(recorded(value if same is None else same)))
    assert told != json.loads(json.dumps(recorded(other)))


def test_what_cannot_be_told_is_not_taken_for_the_same():
    assert recorded(torch.Generator()) != recorded(torch.Generator())


def plain(n_layers):
    return (n_layers,)


class Plain(ll.Strategy):
    """No dataclass."""

    def __init__(self, rate, depth=1):
        self._rate, self.depth = rate, depth

    @cached_property
    def kept(self):
        return object()

    def layers(self, n_layers, tied=False):
        return plain(n_layers)

    def choose(self, readouts):
        raise NotImplementedError


class Further(ll.Valley):
    """A dataclass by inheritance, with an option that is no field."""

    def __init__(self, depth):
        super().__init__(window=2)
        object.__setattr__(self, "depth", depth)


def test_the_options_of_a_strategy_that_is_no_dataclass_are_said():
    strategy = Plain(0.5)
    assert strategy.kept is not None
    assert attributes_of(strategy) == {"_rate": 0.5, "depth": 1}, "and not what it keeps to save time"
    assert strategy_record(strategy) == {"name": "Plain", "_rate": 0.5, "depth": 1}
    further = strategy_record(Further(3), n_layers=12)
    assert (further["name"], further["window"], further["depth"]) == ("Further", 2, 3)


def test_a_class_that_is_called_like_a_strategy_of_ours_is_none():
    impostor = type("valley", (Plain,), {"__module__": "mine"})
    assert strategy_record(impostor(1))["name"] == "mine.valley"


@pytest.mark.parametrize(("window", "n_layers", "said"), [(None, 30, 10), (None, 4, 4), (3, 30, 3)])
def test_a_valley_s_window_is_said_also_where_it_was_left_to_it(window, n_layers, said):
    assert strategy_record(ll.Valley(window=window), n_layers)["window"] == said


SOURCE = '''
from functools import cached_property
import layerlens as ll
_RATE = 0.5
_DEEP = 4
def _half(x):
    return x / 2 if x else _half(not x)
def _stepped(step):
    def by_step(self):
        return step
    return by_step
class Base(ll.Strategy):
    depth = 2
    def layers(self, n_layers, tied=False):
        return (n_layers - self.depth, n_layers)
class Mine(Base):
    """What it does."""
    def choose(self, readouts):
        """Chooses."""
        names = {"b", "a", "c"}
        return [_half(x) * _RATE for x in readouts if x not in {"b", "a", "c"}]
    @property
    def twice(self):
        return 2 * self.depth
    @cached_property
    def thrice(self):
        return 3 ** self.depth
    @staticmethod
    def shifted(x, *, by=7):
        return x << by
    @classmethod
    def deep(cls):
        return (lambda: _DEEP)()
    def __call__(self):
        return 11
    stepped = _stepped(6)
'''


def code(source):
    known = {"__name__": "mine"}
    exec(source, known)
    return code_of(known["Mine"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x / 2", "x / 4"),
        ("_RATE = 0.5", "_RATE = 0.25"),
        ("depth = 2", "depth = 3"),
        ("n_layers - self.depth", "n_layers + self.depth"),
        ("2 * self.depth", "3 * self.depth"),
        ("2 * self.depth", "2 * self.width"),
        ("3 ** self.depth", "4 ** self.depth"),
        ("by=7", "by=8"),
        ("x << by", "x >> by"),
        ("_DEEP = 4", "_DEEP = 5"),
        ("return 11", "return 12"),
        ("_stepped(6)", "_stepped(7)"),
        ("tied=False", "tied=True"),
        ('not in {"b", "a", "c"}]', 'not in {"b", "a"}]'),
    ],
)
def test_an_edit_of_what_a_class_does_is_seen(old, new):
    assert SOURCE.count(old) == 1
    assert code(SOURCE.replace(old, new)) != code(SOURCE)


def test_lines_and_comments_are_not_what_a_class_does():
    moved = SOURCE.replace("_RATE = 0.5", "\n\n# a comment\n_RATE = 0.5").replace(
        "def choose", "# here\n    def choose"
    )
    assert code(moved) == code(SOURCE)


def test_ours_are_told_by_the_version():
    assert code_of(ll.Valley) is code_of(ll.DoLa) is None
    assert code_of(Plain) is not None


def test_the_digest_is_the_same_in_another_process(tmp_path):
    """Where hashes of texts, and with them the order of sets, are others."""
    (tmp_path / "mine.py").write_text(SOURCE, encoding="utf-8")
    program = "import mine; from layerlens.decode.identity import code_of; print(code_of(mine.Mine))"
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {code(SOURCE)}
