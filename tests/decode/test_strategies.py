"""What each strategy reads and chooses, its options, and strategies by name."""

import math
from dataclasses import dataclass

import pytest
import torch

from layerlens.decode import registry as names
from layerlens.decode.contrast import SLED, DoLa
from layerlens.decode.criteria import CRITERIA
from layerlens.decode.readouts import Readouts
from layerlens.decode.registry import named_strategy, register_strategy, strategy_names, strategy_record
from layerlens.decode.scan import SCANS
from layerlens.decode.strategies import Choice, Fixed, Last, Strategy, Valley
from layerlens.errors import OptionError
from layerlens.models import Unembed
from tests.refusals import refused

N_LAYERS = 12


def sure(*heights: float, uniform: list[float] | None = None) -> Readouts:
    """Rows that are alike; layer l's logits are [height of l, 0, 0, l / 100], so a larger height is surer."""
    draws = torch.zeros(1) if uniform is None else torch.tensor(uniform)
    states = {
        layer: torch.tensor([[height, 0.0, 0.0, layer / 100]]).repeat(len(draws), 1)
        for layer, height in enumerate(heights, 1)
    }
    return Readouts(Unembed([], torch.eye(4)), states, len(heights), draws)


def layers_of(choice: Choice) -> list[int]:
    """The layers that a choice's logits belong to, from the logits themselves."""
    return (choice.logits[:, 3] * 100).round().int().tolist()


# entropy falls from layer 12 back to 9, the valley, and rises at 8
VALLEY_AT_9 = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 5.0, 9.0, 8.0, 7.0, 6.0)


@pytest.mark.parametrize(
    ("strategy", "layers"),
    [
        (Last(), []),
        (Fixed(3), [9, 12]),
        (Fixed(11), [1, 12]),
        (Fixed(0), []),
        (Fixed(3, p=0), []),
        (Valley(), list(range(3, 13))),
        (Valley(window=12), list(range(1, 13))),
        (Valley(window=2), [11, 12]),
        (Valley(window=1), []),
        (Valley(p=0.0), []),
        (Valley(shift=-1, p=0.5), list(range(3, 13))),
        (DoLa(), [0, 2, 4, 12]),
        (DoLa(candidates="high"), [6, 8, 10, 12]),
        (DoLa(candidates=(5, 1)), [5, 1, 12]),
        (SLED(), list(range(13))),
    ],
    ids=str,
)
def test_layers_that_a_strategy_reads(strategy, layers):
    assert list(strategy.layers(N_LAYERS)) == layers


def test_the_window_is_ten_or_the_whole_of_a_shallower_model():
    assert {n: len(Valley().layers(n)) for n in (1, 4, 9, 10, 11, 40)} == {1: 0, 4: 4, 9: 9, 10: 10, 11: 10, 40: 10}
    falling = sure(*[float(40 - layer) for layer in range(40)])
    assert Valley().choose(falling).selected_layer.tolist() == [31]
    assert Valley().choose(sure(3.0, 2.0, 1.0)).selected_layer.tolist() == [1]


def test_last_is_the_last_layer():
    choice = Last().choose(sure(*VALLEY_AT_9))
    assert layers_of(choice) == choice.selected_layer.tolist() == [12]
    assert choice.valley_layer is None


@pytest.mark.parametrize("offset", [0, 1, 4, 11])
def test_fixed_is_that_many_layers_before_the_last(offset):
    choice = Fixed(offset).choose(sure(*VALLEY_AT_9))
    assert layers_of(choice) == choice.selected_layer.tolist() == [12 - offset]


@pytest.mark.parametrize(
    ("shift", "window", "layer"),
    [
        (0, 10, 9),
        (1, 10, 10),
        (2, 10, 11),
        (3, 10, 12),
        (4, 10, 12),
        (9, 10, 12),
        (-1, 10, 8),
        (-2, 10, 7),
        (-6, 10, 3),
        (-7, 10, 3),
        (-9, 10, 3),
        (-1, 4, 9),
        (-1, 5, 8),
        (-1, 3, 10),
        (0, 1, 12),
    ],
)
@pytest.mark.parametrize("scan", ["batched", "lazy"])
def test_shift_counts_from_the_valley_and_stays_inside_the_window(shift, window, layer, scan):
    strategy = Valley(window=window, shift=shift, scan=scan)
    assert len(strategy.layers(N_LAYERS)) == (window if window > 1 else 0)
    choice = strategy.choose(sure(*VALLEY_AT_9))
    assert layers_of(choice) == choice.selected_layer.tolist() == [layer]
    assert choice.valley_layer.tolist() == [max(9, 13 - window)]


@pytest.mark.parametrize("strategy", [Fixed, Valley], ids=["fixed", "valley"])
@pytest.mark.parametrize("shift", [0, 1])
def test_a_row_acts_where_its_draw_is_below_p(strategy, shift):
    """Strictly below, each row by its own draw; the layer is 9 or, shifted, 10."""
    below_half = torch.nextafter(torch.tensor(0.5), torch.tensor(0.0)).item()
    draws = [0.0, 0.25, below_half, 0.5, 0.75, 1 - 2**-24]
    for p, acts in ((0.5, [1, 1, 1, 0, 0, 0]), (0.25, [1, 0, 0, 0, 0, 0]), (1.0, [1] * 6), (1, [1] * 6), (0, [0] * 6)):
        made = Fixed(3 - shift, p=p) if strategy is Fixed else Valley(shift=shift, p=p)
        choice = made.choose(sure(*VALLEY_AT_9, uniform=draws))
        assert layers_of(choice) == choice.selected_layer.tolist() == [9 + shift if act else 12 for act in acts]
        if strategy is Valley:
            assert choice.valley_layer.tolist() == [9] * 6, "where the walk ended, acted on or not"


def test_the_last_token_is_the_last_layer_s_whatever_is_chosen():
    heights = (1.0, 9.0, -1.0)
    for strategy in (Last(), Fixed(1), Valley(), Valley(shift=-1)):
        choice = strategy.choose(sure(*heights))
        assert choice.last_token_id.tolist() == [3]
    assert Fixed(1).choose(sure(*heights)).logits.argmax(1).tolist() == [0]


def test_values_are_the_criterion_of_the_window():
    readouts = sure(*VALLEY_AT_9)
    values = Valley(window=6, scan="batched").choose(readouts).values
    probs = readouts.logits(range(7, 13)).double().softmax(2)
    torch.testing.assert_close(values.double(), torch.special.entr(probs).sum(2), atol=1e-5, rtol=1e-5)
    lazy = Valley(window=6, scan="lazy").choose(sure(*VALLEY_AT_9)).values
    assert lazy.isnan().tolist() == [[True, False, False, False, False, False]]
    torch.testing.assert_close(lazy[:, 1:], values[:, 1:])


def test_below_the_entropy_floor_no_row_walks():
    readouts = sure(*VALLEY_AT_9)
    entropy = torch.special.entr(readouts.logits([12])[0, 0].softmax(0)).sum().item()
    for scan in ("batched", "lazy", "auto"):
        for floor, layer in ((entropy * 1.01, 12), (entropy * 0.99, 9)):
            choice = Valley(entropy_floor=floor, scan=scan).choose(sure(*VALLEY_AT_9))
            assert choice.selected_layer.tolist() == [layer]


@pytest.mark.parametrize(
    ("make", "option", "given", "advice"),
    [
        (lambda: Valley(window=13).layers(N_LAYERS), "window", 13, "1..12"),
        (lambda: Valley(window=13, p=0).layers(N_LAYERS), "window", 13, "1..12"),
        (lambda: Valley(window=0), "window", 0, "from 1"),
        (lambda: Valley(window=-1), "window", -1, "from 1"),
        (lambda: Valley(window=2.0), "window", 2.0, "from 1"),
        (lambda: Valley(window=True), "window", True, "from 1"),
        (lambda: Fixed(12).layers(N_LAYERS), "offset", 12, "0 to offset 11"),
        (lambda: Fixed(12, p=0).layers(N_LAYERS), "offset", 12, "0 to offset 11"),
        (lambda: Fixed(-1), "offset", -1, "from 0"),
        (lambda: Fixed(1.0), "offset", 1.0, "from 0"),
        (lambda: Fixed(False), "offset", False, "from 0"),
        (lambda: Valley(shift=0.5), "shift", 0.5, "whole number"),
        (lambda: Valley(shift=1.0), "shift", 1.0, "whole number"),
        (lambda: Valley(shift=None), "shift", None, "whole number"),
        (lambda: Valley(shift=True), "shift", True, "whole number"),
        (lambda: Valley(shift=10).layers(N_LAYERS), "shift", 10, "-9 to 9"),
        (lambda: Valley(shift=-10, p=0).layers(N_LAYERS), "shift", -10, "-9 to 9"),
        (lambda: Valley(shift=7).layers(4), "shift", 7, "-3 to 3"),
        (lambda: Valley(window=3, shift=-3).layers(N_LAYERS), "shift", -3, "-2 to 2"),
        (lambda: Valley(window=1, shift=1).layers(N_LAYERS), "shift", 1, "shift 0"),
        (lambda: Valley(shift=10**30).layers(N_LAYERS), "shift", 10**30, "-9 to 9"),
        (lambda: Valley(criterion="entropy"), "criterion", "entropy", ", ".join(CRITERIA)),
        (lambda: Valley(scan="eager"), "scan", "eager", ", ".join(SCANS)),
        (lambda: Valley(entropy_floor=-0.1), "entropy_floor", -0.1, "nats"),
        (lambda: Valley(entropy_floor=math.nan), "entropy_floor", math.nan, "nats"),
        (lambda: Valley(entropy_floor=math.inf), "entropy_floor", math.inf, "nats"),
        (lambda: Valley(entropy_floor=True), "entropy_floor", True, "nats"),
        (lambda: Valley(entropy_floor="0.1"), "entropy_floor", "0.1", "nats"),
        (lambda: Valley(entropy_floor=0.1, criterion="margin"), "entropy_floor", 0.1, "out"),
        (lambda: Valley(entropy_floor=0.1, criterion="neg-sum-sq-logp"), "entropy_floor", 0.1, "out"),
    ],
)
def test_options_out_of_range_are_refused(make, option, given, advice):
    with refused(OptionError, option, given, advice=advice):
        make()


@pytest.mark.parametrize("p", [-0.01, 1.01, True, False, "0.5", None, math.nan, math.inf])
@pytest.mark.parametrize("make", [Valley, lambda p: Fixed(1, p)], ids=["valley", "fixed"])
def test_what_is_no_probability_is_refused(make, p):
    with refused(OptionError, "p", p, advice="0 to 1"):
        make(p=p)


def test_options_at_their_bounds_are_accepted():
    assert Valley(window=12).layers(N_LAYERS)
    assert Fixed(11).layers(N_LAYERS)
    assert (Valley(p=0).p, Valley(p=1).p) == (0, 1)
    assert Valley(entropy_floor=0, criterion="margin").criterion == "margin"


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("last", Last()),
        ("fixed", Fixed(3)),
        ("valley", Valley()),
        ("dola", DoLa()),
        ("sled", SLED()),
        ("trough", Valley()),
        ("trough-m1", Valley(shift=-1)),
        ("trough-m2", Valley(shift=-2)),
        ("trough-p1", Valley(shift=1)),
        ("trough-p2", Valley(shift=2)),
        ("valley-1", Valley(shift=-1)),
        ("valley+1", Valley(shift=1)),
        ("valley+2", Valley(shift=2)),
        ("last-m1", Fixed(1)),
        ("last-m4", Fixed(4)),
        ("last-m8", Fixed(8)),
        ("last-1", Fixed(1)),
        ("last-4", Fixed(4)),
        ("last-11", Fixed(11)),
        ("dola-low", DoLa(candidates="low")),
        ("dola-high", DoLa(candidates="high")),
    ],
)
def test_every_name_and_alias_is_its_strategy(name, strategy):
    assert named_strategy(name, **({"offset": 3} if name == "fixed" else {})) == strategy


def test_options_reach_a_strategy_by_name():
    assert named_strategy("valley", window=4, p=0.2, shift=1) == Valley(window=4, p=0.2, shift=1)
    assert named_strategy("trough-m1", p=0.5, criterion="margin") == Valley(shift=-1, p=0.5, criterion="margin")
    assert named_strategy("last-4", p=0.6) == Fixed(4, p=0.6)
    assert named_strategy("dola-high", per="row") == DoLa(candidates="high", per="row")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Valley", "valley"),
        ("valleys", "valley"),
        ("trough-1", "trough-m1"),
        ("trough-m", "trough-m1"),
        ("last-", "last-1"),
        ("last--1", "last-1"),
        ("last-p1", "last-1"),
        ("valley1", "valley-1"),
        ("dola-mid", "dola"),
    ],
)
def test_a_name_with_a_slip_is_refused_with_the_one_that_was_meant(name, meant):
    with refused(OptionError, "strategy", name, advice=f"did you mean {meant}"):
        named_strategy(name)


@pytest.mark.parametrize("name", ["", "greedy"])
def test_an_unknown_name_is_refused_with_the_known_ones(name):
    with refused(OptionError, "strategy", name, advice=", ".join(strategy_names())):
        named_strategy(name)


@pytest.mark.parametrize(
    ("name", "option", "given"),
    [
        ("last", "p", 0.5),
        ("last", "window", 10),
        ("sled", "p", 0.5),
        ("dola", "scale", 5),
        ("valley", "relative_top", 0.1),
        ("last-4", "offset", 4),
        ("last-4", "window", 4),
        ("trough-m1", "shift", -1),
        ("valley+1", "shift", 2),
        ("dola-low", "candidates", "high"),
    ],
)
def test_an_option_without_effect_is_refused(name, option, given):
    with refused(OptionError, option, given, problem="no effect"):
        named_strategy(name, **{option: given})


def test_a_strategy_that_lacks_an_option_is_refused():
    with refused(OptionError, "strategy", "fixed", problem="needs offset"):
        named_strategy("fixed")


def test_an_option_out_of_range_is_refused_by_name_too():
    with refused(OptionError, "p", 2):
        named_strategy("last-1", p=2)


@dataclass(frozen=True)
class MeanOfTwo(Strategy):
    """Somebody else's strategy: a weighted mean of the last two layers' logits."""

    weight: float = 0.5

    def layers(self, n_layers, tied=False):
        return n_layers - 1, n_layers

    def choose(self, readouts):
        n_layers = readouts.n_layers
        logits = readouts.logits([n_layers - 1, n_layers])
        top = logits[:, 1].argmax(1)
        mixed = logits[:, 0] * (1 - self.weight) + logits[:, 1] * self.weight
        return Choice(mixed, torch.full_like(top, n_layers), top)


@pytest.fixture
def registry(monkeypatch):
    """The registered names, as they were again afterwards."""
    monkeypatch.setattr(names, "_REGISTERED", dict(names._REGISTERED))


def test_somebody_else_s_strategy_has_a_name(registry):
    register_strategy("mean-of-2", MeanOfTwo)
    assert strategy_names() == ["last", "fixed", "valley", "dola", "sled", "mean-of-2"]
    strategy = named_strategy("mean-of-2", weight=0.25)
    assert strategy == MeanOfTwo(0.25)
    assert strategy_record(strategy) == {"name": "mean-of-2", "weight": 0.25}
    assert list(strategy.layers(N_LAYERS)) == [11, 12]
    assert not strategy.whole_batch
    choice = named_strategy("mean-of-2").choose(sure(*VALLEY_AT_9))
    torch.testing.assert_close(choice.logits, torch.tensor([[6.5, 0.0, 0.0, 0.115]]))
    with refused(OptionError, "p", 0.5, problem="mean-of-2"):
        named_strategy("mean-of-2", p=0.5)
    with refused(OptionError, "strategy", "mean-of-3", advice="mean-of-2"):
        named_strategy("mean-of-3")


@pytest.mark.parametrize("name", ["last", "valley", "sled", "trough", "last-3", "last-m3", "valley-2", "dola-low"])
def test_a_taken_name_is_refused(registry, name):
    with refused(OptionError, "name", name, problem="already"):
        register_strategy(name, MeanOfTwo)


def test_a_name_is_taken_once_it_is_registered(registry):
    register_strategy("mine", MeanOfTwo)
    with pytest.raises(OptionError, match="already a strategy 'mine'"):
        register_strategy("mine", Last)


@pytest.mark.parametrize("name", ["", "Mine", "my strategy", "my_strategy", "2nd", "-mine", "mine\n", "valley+3", "é"])
def test_a_malformed_name_is_refused(registry, name):
    with refused(OptionError, "name", name, advice="lower-case"):
        register_strategy(name, MeanOfTwo)
    assert name not in strategy_names()


def test_a_strategy_s_record_makes_it_again():
    made = [Valley(window=3, p=0.5, shift=-2), Fixed(2), Last(), DoLa(candidates=(1, 2)), SLED(steps=3)]
    for strategy in made:
        record = strategy_record(strategy)
        assert named_strategy(record.pop("name"), **record) == strategy
    assert strategy_record(named_strategy("trough-m1"))["name"] == "valley"
    assert strategy_record(MeanOfTwo()) == {"name": "MeanOfTwo", "weight": 0.5}
    assert strategy_record(MeanOfTwo(weight=object))["weight"] == "<class 'object'>", "what JSON cannot hold is named"
