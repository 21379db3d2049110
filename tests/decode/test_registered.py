"""Somebody else's strategies: every door gives them their options, and every record says which ones they had."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

import layerlens as ll
from layerlens.decode import registry as names
from layerlens.decode.registry import asked_strategy, named_strategy, register_strategy, takes_option
from layerlens.evaluation.ablation import conditions
from layerlens.evaluation.arms import arms_of
from layerlens.records.evaluation import read_manifest as read_evaluation
from tests.needs_inspect import needs_inspect
from tests.refusals import refused

FEW = {"max_new_tokens": 6, "progress": False, "batch_size": 1}


@dataclass(frozen=True)
class Narrow(ll.Strategy):
    """A walk back that is no `Valley`, with a window and a criterion of its own."""

    window: int = 3
    criterion: str = "max-prob"
    p: float = 1.0
    candidates: tuple[int, ...] = ()

    def _walk(self):
        return ll.Valley(window=self.window, criterion=self.criterion, p=self.p)

    def layers(self, n_layers, tied=False):
        return self._walk().layers(n_layers, tied)

    def choose(self, readouts):
        return self._walk().choose(readouts)


class Silent(ll.Strategy):
    """Says nothing of what it compares."""

    def layers(self, n_layers, tied=False):
        return ll.Valley(window=3).layers(n_layers, tied)

    def choose(self, readouts):
        return ll.Valley(window=3).choose(readouts)


@dataclass(frozen=True)
class Cautious(ll.Valley):
    """A kind of valley."""

    criterion: str = "margin"


@dataclass(frozen=True)
class Reverted(ll.Last):
    """A kind of last layer, with a p, that is another one."""

    p: float = 1.0

    def layers(self, n_layers, tied=False):
        return (n_layers - 1, n_layers)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """The registered names, with these among them, as they were again afterwards."""
    monkeypatch.setattr(names, "_REGISTERED", dict(names._REGISTERED))
    for name, kind in (("narrow", Narrow), ("cautious", Cautious), ("reverted", Reverted)):
        register_strategy(name, kind)


def test_a_window_reaches_it_through_every_door(cli, tiny_folder, tmp_path):
    """As `--window` of generate does, so that of trace and ablate; without one it keeps its own."""
    folder = tiny_folder("llama")
    model = ll.load(folder)
    common = ("--model", folder, "--strategy", "narrow", "--no-chat-template", "--max-new-tokens", 40)
    (tmp_path / "p.txt").write_text("What is 1 and 1?", encoding="utf-8")
    found = {}
    for window, given in ((None, ()), (2, ("--window", 2)), (4, ("--window", 4))):
        out = tmp_path / f"run{window}"
        assert cli("trace", *common, *given, "--prompts", tmp_path / "p.txt", "--out", out)[0] == 0
        run = ll.open_run(out)
        generation = ll.generate(
            model, "What is 1 and 1?", strategy=Narrow(window=window or 3), max_new_tokens=40, chat_template=False
        )
        assert run.positions["next_token_id"].tolist() == generation.token_ids
        assert run.positions["selected_layer"].tolist() == generation.steps["selected_layer"].tolist()
        assert run.manifest["strategy"] == {
            "name": "narrow",
            "window": window or 3,
            "criterion": "max-prob",
            "p": 1.0,
            "candidates": [],
        }
        assert run.manifest["window"] == (window or 4), "of Eq. 7: 10, or all layers where there are fewer"
        found[window] = tuple(run.positions["selected_layer"])
        assert strategies_of(["narrow"], window=window)["narrow"] == Narrow(window=window or 3)
    assert len(set(found.values())) == 3, "windows that choose alike would show nothing"


@pytest.mark.parametrize(
    ("strategy", "options", "own", "analysed"),
    [
        (ll.Valley(window=2), {}, 2, 2),
        (ll.Valley(window=2), {"window": 4}, 2, 4),
        (ll.Valley(), {"window": 2}, 4, 2),
        (ll.Valley(), {}, 4, 4),
        (Cautious(window=2), {"window": 3}, 2, 3),
        (Narrow(window=2), {"window": 3}, 2, 3),
        (Narrow(window=2), {}, 2, 4),
    ],
)
def test_a_strategy_decodes_from_its_own_window_and_the_manifest_says_both(
    tiny_llama, tmp_path, strategy, options, own, analysed
):
    run = ll.trace(tiny_llama, ["hello there"], strategy=strategy, out=tmp_path / "run", **FEW, **options)
    assert (run.manifest["strategy"]["window"], run.manifest["window"]) == (own, analysed)
    assert run.positions["selected_layer"].min() >= 4 - own + 1
    entropy = run.layers("entropy")
    for row, valley in zip(entropy, run.positions["valley_layer"], strict=True):
        layer = 4
        while layer > 4 - analysed + 1 and row[layer - 2] < row[layer - 1]:
            layer -= 1
        assert valley == layer


class Interrupt(Exception):
    """A stop after the first batch."""


def begun(model, monkeypatch, out, **options):
    """A run of two prompts that was stopped after the first."""
    write = ll.records.RunWriter.write
    with monkeypatch.context() as patched:

        def once(self, index, *columns):
            if index:
                raise Interrupt
            write(self, index, *columns)

        patched.setattr(ll.records.RunWriter, "write", once)
        with pytest.raises(Interrupt):
            ll.trace(model, ["hello", "there"], out=out, **FEW, **options)


class Plain(ll.Strategy):
    """No dataclass."""

    def __init__(self, weights):
        self._weights = weights

    def layers(self, n_layers, tied=False):
        return ()

    def choose(self, readouts):
        raise NotImplementedError


def edited(kind):
    """A class of the same name and options that does something else."""
    return type(kind.__name__, (kind,), {"layers": lambda self, n_layers, tied=False: (n_layers,)})


LONG = np.arange(3000)


@pytest.mark.parametrize(
    ("first", "then", "resumes"),
    [
        (ll.Valley(window=2), ll.Valley(window=4), False),
        (ll.Valley(), ll.Valley(window=4), True),
        (ll.Valley(window=2, scan="lazy"), ll.Valley(window=2, scan="batched"), True),
        (ll.Valley(window=2), Cautious(window=2), False),
        (Narrow(window=2), Narrow(window=4), False),
        (Narrow(window=2), Narrow(window=2), True),
        (Narrow(candidates=(1, 2)), Narrow(candidates=(1, 2)), True),
        (Narrow(candidates=(1, 2)), Narrow(candidates=(1, 3)), False),
        (Cautious(), Cautious(criterion="shannon"), False),
        (Plain(0.5), edited(Plain)(0.5), False),
        (Plain(0.5), Plain(0.25), False),
        (Plain(0.5), Plain(0.5), True),
        (Plain(LONG), Plain(np.where(LONG == 1500, 0, LONG)), False),
        (Plain(LONG), Plain(LONG.copy()), True),
        (Plain(torch.zeros(5000)), Plain(torch.zeros(5000)), True),
        (Plain(object()), Plain(object()), False),
    ],
)
def test_a_run_is_resumed_with_the_same_strategy_alone(tiny_llama, tmp_path, monkeypatch, first, then, resumes):
    out = tmp_path / "run"
    begun(tiny_llama, monkeypatch, out, strategy=first, window=4)
    part = (out / "tokens" / "part-00000.parquet").read_bytes()
    if resumes:
        assert ll.trace(
            tiny_llama, ["hello", "there"], strategy=then, out=out, resume=True, window=4, **FEW
        ).is_complete
    else:
        with refused(ll.RunError, given=out, problem="was begun"):
            ll.trace(tiny_llama, ["hello", "there"], strategy=then, out=out, resume=True, window=4, **FEW)
    assert (out / "tokens" / "part-00000.parquet").read_bytes() == part


def test_runs_of_two_windows_are_not_merged(tiny_llama, tmp_path):
    for name, window, prompt in (("a", 2, "x"), ("b", 4, "y"), ("c", 2, "z")):
        given = ll.Dataset("mine", None, None, None, None, (ll.Prompt(name, prompt, None),))
        ll.trace(tiny_llama, given, strategy=Narrow(window=window), window=4, out=tmp_path / name, **FEW)
    with refused(ll.RunError, "runs", tmp_path / "b", problem="window 4"):
        ll.merge([tmp_path / "a", tmp_path / "b"], out=tmp_path / "ab")
    assert len(ll.merge([tmp_path / "a", tmp_path / "c"], out=tmp_path / "ac").prompts) == 2


def strategies_of(arms, p=(1.0,), window=None):
    """What `ablate` answers with, by the names of its arms."""
    return {arm.name: asked_strategy(arm.options) for arm in arms_of(conditions(arms, p), window=window)}


def test_an_ablation_keeps_arms_that_derive_from_ours_apart():
    arms = ["valley", "cautious", "reverted", "narrow"]
    strategies = strategies_of(arms, window=2)
    assert list(strategies) == ["last", *arms]
    assert [type(one) for one in strategies.values()] == [ll.Last, ll.Valley, Cautious, Reverted, Narrow]
    assert [getattr(one, "window", None) for one in strategies.values()] == [None, 2, 2, None, 2]


def test_an_arm_acts_with_the_p_of_its_name_whatever_its_own_is(monkeypatch):
    monkeypatch.setitem(names._REGISTERED, "seldom", replace_default(Narrow, p=0.25))
    found = strategies_of(["seldom"], (0.25, 0.5, 1.0))
    assert {name: getattr(one, "p", None) for name, one in found.items()} == {
        **{"last": None, "seldom_p0.25": 0.25},
        **{"seldom_p0.5": 0.5, "seldom": 1.0},
    }


def replace_default(kind, **defaults):
    """A class of strategies with other defaults."""
    return dataclass(frozen=True)(
        type("Another", (kind,), {"__annotations__": dict.fromkeys(defaults, "float"), **defaults})
    )


@needs_inspect
def test_an_ablation_is_continued_with_the_same_arms(tiny_llama, tmp_path):
    def ablate(**options):
        few = {"max_new_tokens": 3, "p": [1.0], "limit": 1, "arms": ["narrow"]}
        return ll.ablate(tiny_llama, ["sample"], out=tmp_path / "a", **few, **options)

    ablate()
    assert read_evaluation(tmp_path / "a")["evaluation"]["arms"]["narrow"] == {"strategy": "narrow"}
    ablate()
    with refused(ll.RunError, "out", "narrow", problem="narrow"):
        ablate(window=2)


@needs_inspect
def test_an_ablation_is_not_continued_with_an_arm_whose_class_was_edited(tiny_llama, tmp_path):
    few = {"max_new_tokens": 3, "limit": 1, "arms": ["narrow"], "out": tmp_path / "a"}
    ll.ablate(tiny_llama, ["sample"], p=[1.0], **few)
    names._REGISTERED["narrow"] = edited(Narrow)
    with pytest.raises(ll.RunError, match="code"):
        ll.ablate(tiny_llama, ["sample"], p=[0.5, 1.0], **few)


def test_the_log_calls_its_values_what_it_says(tiny_llama):
    """Beside the last layer's own probabilities: −max p of layer L, not an entropy."""
    prompt = "What is 1 and 1?"
    found = ll.generate(tiny_llama, prompt, strategy=Narrow(), max_new_tokens=1).steps
    ids = tiny_llama.tokenizer(prompt, return_tensors="pt", add_special_tokens=True)
    with ll.decoding(tiny_llama, Narrow()) as log:
        tiny_llama.hf.generate(**ids, max_new_tokens=1, do_sample=False)
    logits = tiny_llama.hf(**ids).logits[0, -1].detach().double()
    for steps in (found, log.steps):
        assert not {"entropy", "values"} & {*steps}
    assert log.criterion == "max_prob"
    assert log.steps["max_prob"][0][-1] == pytest.approx(-float(logits.softmax(0).max()), rel=1e-5)
    silent = ll.generate(tiny_llama, prompt, strategy=Silent(), max_new_tokens=1).steps
    assert "entropy" not in silent
    assert len(silent["values"][0]) == 3
    for ours in (ll.Last(), ll.Fixed(1), ll.Valley(), ll.DoLa(), ll.SLED()):
        assert "entropy" in ll.generate(tiny_llama, prompt, strategy=ours, max_new_tokens=1).steps


@pytest.mark.parametrize("name", ["position", "selected-layer", "call"])
def test_a_criterion_does_not_take_the_place_of_another_column(tiny_llama, name):
    kind = type("Taking", (Plain,), {"criterion": name})
    with refused(ll.OptionError, "criterion", name):
        ll.generate(tiny_llama, "a", strategy=kind(1), max_new_tokens=1)


@dataclass(frozen=True)
class Faulty(Narrow):
    """Whose constructor has a mistake."""

    def __post_init__(self):
        sum(["a"])


@dataclass(frozen=True)
class Needy(Narrow):
    """Two options without a default, and one that cannot be given."""

    rate: float = field(kw_only=True)
    depth: int = field(kw_only=True)
    made: int = field(init=False, default=3)


class Open(Plain):
    """Takes whatever is given."""

    def __init__(self, **options):
        super().__init__(options)


def test_what_its_constructor_raises_comes_through_as_it_is():
    register_strategy("faulty", Faulty)
    with pytest.raises(TypeError, match="unsupported operand"):
        named_strategy("faulty", window=2)


def test_what_it_needs_is_said_before_it_is_made():
    register_strategy("needy", Needy)
    register_strategy("plain", Plain)
    register_strategy("open", Open)
    with refused(ll.OptionError, "strategy", "needy", problem="needs depth"):
        named_strategy("needy", rate=1)
    for name in ("rate", "depth"):
        with refused(ll.OptionError, "strategy", "needy", problem=name):
            named_strategy("needy")
    with refused(ll.OptionError, "made", 4):
        named_strategy("needy", made=4, rate=1, depth=1)
    with refused(ll.OptionError, "strategy", "plain", problem="needs weights"):
        named_strategy("plain")
    with refused(ll.OptionError, "p", 0.5):
        named_strategy("plain", p=0.5)
    assert named_strategy("plain", weights=2)._weights == 2
    assert named_strategy("open", anything=1)._weights == {"anything": 1}
    taken = [takes_option(name, "window") for name in ("narrow", "valley-2", "trough", "open", "last", "sled", "plain")]
    assert taken == [True, True, True, True, False, False, False]
    assert not takes_option("valley-2", "shift")


def test_a_class_that_cannot_be_made_is_refused_when_it_is_registered():
    class Half(ll.Strategy):
        def layers(self, n_layers, tied=False):
            return ()

    with refused(ll.OptionError, "strategy", problem="choose"):
        register_strategy("half", Half)
