"""What an engine of vLLM and its requests can ask for. vLLM itself is not needed."""

import pytest

from layerlens import SLED, DoLa, Fixed, Last, Valley
from layerlens.engines.vllm.options import engine_options, own_options, refuse_absent_layers, request_options
from layerlens.errors import OptionError
from tests.refusals import refused

ENGINE = engine_options({"strategy": "valley", "window": 6, "p": 0.5, "also": ["sled", {"strategy": "dola-low"}]})


def test_an_engine_has_a_strategy_and_those_beside_it():
    assert ENGINE.strategy == Valley(window=6, p=0.5)
    assert ENGINE.also == (SLED(), DoLa(candidates="low"))
    assert engine_options({"strategy": "last-2"}).strategy == Fixed(2)


@pytest.mark.parametrize(
    ("given", "n_layers", "layers"),
    [
        ({"strategy": "valley", "window": 4}, 30, (27, 28, 29, 30)),
        ({"strategy": "last"}, 30, (30,)),
        ({"strategy": "last-2"}, 30, (28, 30)),
        ({"strategy": "valley", "window": 2, "also": ["dola-low"]}, 12, (0, 2, 4, 11, 12)),
        ({"strategy": "last", "also": ["sled"]}, 4, (0, 1, 2, 3, 4)),
        ({"strategy": "dola", "candidates": [1, 3]}, 4, (1, 3, 4)),
    ],
)
def test_an_engine_keeps_the_layers_of_all_its_strategies(given, n_layers, layers):
    assert engine_options(given).layers(n_layers, tied=False) == layers


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ({}, "strategy"),
        ({"strategy": "vally"}, "strategy"),
        ({"strategy": "valley", "windows": 3}, "windows"),
        ({"strategy": "valley", "also": "sled"}, "also"),
        ({"strategy": "valley", "also": [3]}, "also"),
        ({"strategy": "valley", "record_bytes": -1}, "record_bytes"),
        ({"strategy": "valley", "shortest_id": 0}, "shortest_id"),
        ({"strategy": "valley", "shortest_id": 501}, "shortest_id"),
        ({"strategy": 3}, "strategy"),
        ({"strategy": "valley", "lens": 3}, "lens"),
        ({"strategy": "valley", "lens": "linear"}, "lens"),
        ({"strategy": "valley", "lens": "tuned:no-such-folder"}, "lens"),
        ({"strategy": "valley", "traces": {"targets": "yes"}}, "targets"),
        ("valley", "layerlens"),
    ],
)
def test_an_engine_is_refused_with_the_option(given, option):
    with refused(OptionError, option):
        engine_options(given)


@pytest.mark.parametrize(
    ("extra", "strategy", "seed", "id"),
    [
        (None, Valley(window=6, p=0.5), 7, None),
        ({"of_another_plugin": 1}, Valley(window=6, p=0.5), 7, None),
        ({"layerlens": {"p": 1.0}}, Valley(window=6), 7, None),
        ({"layerlens": {"strategy": "valley"}}, Valley(window=6), 7, None),
        ({"layerlens": {"strategy": "valley", "window": 3, "seed": 5}}, Valley(window=3), 5, None),
        ({"layerlens_strategy": "last", "layerlens_id": "a"}, Last(), 7, "a"),
        ({"layerlens_window": 2, "layerlens": {"id": "b"}}, Valley(window=2, p=0.5), 7, "b"),
        ({"layerlens": {"strategy": "dola", "candidates": [2, 4]}}, DoLa(candidates=(2, 4)), 7, None),
        ({"layerlens": {"strategy": "valley-1"}}, Valley(window=6, shift=-1), 7, None),
    ],
)
def test_a_request_changes_the_engines_strategy_or_names_another(extra, strategy, seed, id):
    options = request_options(extra, ENGINE, 7)
    assert (options.strategy, options.seed, options.id) == (strategy, seed, id)


@pytest.mark.parametrize(
    ("extra", "option"),
    [
        ({"layerlens": {"strategy": "middle"}}, "strategy"),
        ({"layerlens": {"windows": 2}}, "windows"),
        ({"layerlens_windows": 2}, "windows"),
        ({"layerlens": {"strategy": "last", "window": 2}}, "window"),
        ({"layerlens": {"p": 2}}, "p"),
        ({"layerlens": {"window": 2}, "layerlens_window": 3}, "window"),
        ({"layerlens": {"id": ""}}, "id"),
        ({"layerlens": {"id": 4}}, "id"),
        ({"layerlens": {"seed": -1}}, "seed"),
        ({"layerlens": ["valley"]}, "layerlens"),
        ({"Layerlens_window": 2}, "Layerlens_window"),
        ({"layerlens_": 2}, "layerlens_"),
        ({"layerlenswindow": 2}, "layerlenswindow"),
        ({"layerlens": {"lens": "logit"}}, "lens"),
        ({"layerlens_targets": 1}, "targets"),
        ({"layerlens_shortest_id": 1}, "shortest_id"),
    ],
)
def test_a_request_is_refused_with_the_option(extra, option):
    with refused(OptionError, option):
        request_options(extra, ENGINE, None)


def test_an_id_that_can_be_guessed_is_refused_where_the_engine_says_so():
    engine = engine_options({"strategy": "last", "shortest_id": 32})
    for id in ("a", "x" * 31, "x" * 501):
        given = id if len(id) <= 40 else f"{id[:40]}..."
        with refused(OptionError, "id", given):
            request_options({"layerlens_id": id}, engine, None)
    assert request_options({"layerlens_id": "x" * 32}, engine, None).id == "x" * 32
    assert request_options({"layerlens_id": "x"}, ENGINE, None).id == "x"


def test_lists_of_json_are_tuples_in_options_that_change_the_engines_strategy():
    engine = engine_options({"strategy": "dola", "candidates": [2, 4]})
    found = request_options({"layerlens": {"candidates": [1, 2]}}, engine, 0).strategy
    assert found == DoLa(candidates=(1, 2))
    assert {found: 1}[DoLa(candidates=(1, 2))] == 1, "rows are grouped by it"


def test_a_misspelt_option_of_a_request_is_answered_with_the_right_one():
    for extra in ({"layerlens": {"windw": 2}}, {"layerlens": {"strategy": "valley", "windw": 2}}):
        with refused(OptionError, "windw", advice="did you mean window?"):
            request_options(extra, ENGINE, None)


def test_options_of_others_are_not_ours():
    assert own_options(None) == own_options({"kv_transfer": 1, "layer": 2}) == {}


def test_layers_that_the_engine_does_not_keep_are_refused():
    kept = (1, 7, 8, 9, 10)
    for strategy in (Valley(window=4), Fixed(9), Last(), DoLa(candidates=(1, 8))):
        refuse_absent_layers(strategy, kept, tied=False)
    with refused(OptionError, "window", 5, advice="give 4 or less, or start the engine with window 5"):
        refuse_absent_layers(Valley(window=5), kept, tied=False)
    with refused(OptionError, "strategy", "fixed", problem="reads layer 5,"):
        refuse_absent_layers(Fixed(5), kept, tied=False)
    with refused(OptionError, "strategy", "dola", problem="reads layers 2, 4,"):
        refuse_absent_layers(DoLa(candidates=(1, 2, 4)), kept, tied=False)
