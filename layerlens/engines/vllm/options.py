"""What an engine and a request can ask for."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from layerlens.decode.registry import asked_strategy, strategy_names, strategy_record
from layerlens.decode.strategies import Strategy, layers_of, true_or_false, whole_number
from layerlens.errors import OptionError, did_you_mean
from layerlens.lens.files import ADVICE, parsed
from layerlens.tracing.meter import Wanted
from layerlens.tracing.options import refuse_too_many

KEY = "layerlens"
"""The entry of vLLM's additional config, and of a request's extra arguments, that holds our options."""

OWNER = "LAYERLENS_VLLM_OWNER"
"""The variable that names the process which started an engine for a command or for Python, and which ends it."""

_PREFIX = f"{KEY}_"
_LONGEST_ID = 500  # it is part of an address
UNGUESSED = 32
"""Characters of an id that nobody can guess: those of a UUID without its hyphens."""
_OF_REQUEST = ("id", "seed", "trace")
_OF_ENGINE = ("also", "record_bytes", "shortest_id", "traces", "lens", "targets", "top", "kl", "js")
TRACED = ("generated", "all")
"""Which states of a request can be traced: those that emitted a token, or all."""
_READ = tuple(one.name for one in fields(Wanted) if one.name in ("kl", "js", "targets", "top"))


@dataclass(frozen=True)
class EngineOptions:
    """What an engine is started with."""

    strategy: Strategy
    """Of requests that name none."""
    also: tuple[Strategy, ...] = ()
    """Further strategies that requests may name. Their layers are kept beside those of `strategy`."""
    record_bytes: int = 2**28
    """The most memory that records of tokens may take. Where it is full, the oldest request's are dropped. Traces may
    take as much again."""
    traces: Wanted | None = None
    """What is read of each layer for requests that ask for a trace; None: no request may."""
    lens: str | None = None
    """Through which layers before the last are read: "linear:FILE", "tuned:FILE", "jacobian:FILE"; None: the logit
    lens."""
    shortest_id: int = 1
    """The fewest characters of an id. Whoever knows the id of another client's request can fetch its records."""

    def layers(self, n_layers: int, tied: bool) -> tuple[int, ...]:
        """The layers whose states must come out of the model, L among them, ascending."""
        wanted = {n_layers}
        for strategy in (self.strategy, *self.also):
            wanted.update(layers_of(strategy, n_layers, tied))
        return tuple(sorted(wanted))


@dataclass(frozen=True)
class RequestOptions:
    """What one request asks for."""

    strategy: Strategy
    seed: int = 0
    """With the number of the token it decides the draws of a strategy that acts with a probability."""
    id: str | None = None
    """The name under which its records are kept; None: none are kept."""
    trace: str | None = None
    """Which of its states are traced, one of `TRACED`; None: none."""


def engine_options(given: object) -> EngineOptions:
    """The options of an engine.

    Args:
        given: {"strategy": name, its options ..., "also": [a name, or {"strategy": name, ...}], "record_bytes": n,
            "shortest_id": n, "traces": true or {"top": k, "kl": true, "js": true, "targets": true},
            "lens": "linear:FILE"}.

    Raises:
        OptionError: an option is unknown or out of range.
    """
    options = _mapping(given, KEY)
    also = options.pop("also", [])
    record_bytes = options.pop("record_bytes", EngineOptions.record_bytes)
    whole_number("record_bytes", record_bytes, 0)
    shortest_id = options.pop("shortest_id", EngineOptions.shortest_id)
    whole_number("shortest_id", shortest_id, 1)
    if shortest_id > _LONGEST_ID:
        what = f"is above {_LONGEST_ID}, the most that an id can have"
        raise OptionError.about("shortest_id", shortest_id, what, f"give {UNGUESSED}, as a UUID has")
    traces = _wanted(options.pop("traces", False))
    lens = options.pop("lens", None)
    if lens is not None:
        if not isinstance(lens, str):
            raise OptionError.about("lens", lens, "is not a lens", ADVICE)
        parsed(lens)
    if not isinstance(also, list):
        raise OptionError.about("also", also, "is not a list", "give a list of strategies")
    further = [{"strategy": one} if isinstance(one, str) else _mapping(one, "also") for one in also]
    if "strategy" not in options:
        advice = f"give one of {', '.join(strategy_names())}"
        raise OptionError(f"{KEY} has no strategy", advice, option="strategy", given=given)
    strategies = asked_strategy(options), tuple(map(asked_strategy, further))
    return EngineOptions(*strategies, record_bytes, traces, lens, shortest_id)


def request_options(extra: Mapping[str, Any] | None, engine: EngineOptions, seed: int | None) -> RequestOptions:
    """The options of a request.

    Args:
        extra: its extra arguments: {"layerlens": {"strategy": ..., "id": ...}}, or, as HTTP needs them, one entry for
            each option: {"layerlens_strategy": ..., "layerlens_id": ...}. Options without a strategy change the
            engine's.
        engine: the options of the engine.
        seed: of the request's sampling.

    Raises:
        OptionError: an option is unknown or out of range.
    """
    options = own_options(extra)
    if not options:
        return RequestOptions(engine.strategy, seed or 0)
    for option in _OF_ENGINE:
        if option in options:
            what = "belongs to an engine, and not to a request"
            raise OptionError.about(option, options[option], what, "start the engine with it")
    id = options.pop("id", None)
    if id is not None and not (isinstance(id, str) and engine.shortest_id <= len(id) <= _LONGEST_ID):
        what = f"is not a text of {engine.shortest_id} to {_LONGEST_ID} characters"
        given = f"{id[:40]}..." if isinstance(id, str) and len(id) > 40 else id
        advice = "a name for the request's records" if engine.shortest_id == 1 else "a UUID, which nobody can guess"
        raise OptionError.about("id", given, what, f"give {advice}")
    seed = options.pop("seed", seed or 0)
    whole_number("seed", seed, 0)
    trace = _traced(options.pop("trace", None), id, engine)
    return RequestOptions(asked_strategy(options, engine.strategy, _OF_REQUEST), seed, id, trace)


def own_options(extra: Mapping[str, Any] | None) -> dict[str, Any]:
    """The entries of a request's extra arguments that are ours, by their names here."""
    extra = extra or {}
    found = _mapping(extra[KEY], KEY) if KEY in extra else {}
    for name, value in extra.items():
        if name.lower().startswith(KEY) and name != KEY and not (name.startswith(_PREFIX) and name != _PREFIX):
            what = "names no option of layerlens"
            raise OptionError.about(name, value, what, f"give one such as {_PREFIX}strategy, in small letters")
        if name.startswith(_PREFIX):
            option = name.removeprefix(_PREFIX)
            if option in found:
                raise OptionError.about(option, value, f"is given twice, by {KEY} and by {name}", "give it once")
            found[option] = value
    return found


def refuse_absent_layers(strategy: Strategy, layers: tuple[int, ...], tied: bool) -> None:
    """OptionError where a strategy reads layers that the engine does not keep; the last of `layers` is L."""
    n_layers = layers[-1]
    absent = sorted(set(layers_of(strategy, n_layers, tied)) - set(layers))
    if absent:
        window = strategy.window_in(n_layers)
        kept = f"this engine keeps layers {', '.join(map(str, layers))}"
        if window is not None:
            deepest = next(depth for depth in range(1, n_layers + 1) if n_layers - depth not in layers)
            what = f"is deeper than the candidates with which this engine was started; {kept}"
            advice = f"give {deepest} or less, or start the engine with window {window}"
            raise OptionError.about("window", window, what, advice)
        name = strategy_record(strategy)["name"]
        what = f"reads layer{'s' * (len(absent) > 1)} {', '.join(map(str, absent))}, but {kept}"
        raise OptionError.about("strategy", name, what, f'start the engine with it in "also": [{name!r}]')


def _traced(given: object, id: str | None, engine: EngineOptions) -> str | None:
    """Which states of a request are traced; OptionError where that cannot be."""
    if given is None:
        return None
    if not isinstance(given, str) or given not in TRACED:
        either = f"give {' or '.join(TRACED)}"
        advice = did_you_mean(given, TRACED, either) if isinstance(given, str) else either
        raise OptionError.about("trace", given, "is unknown", advice)
    if id is None:
        raise OptionError.about("trace", given, "needs a name to be fetched by", "give an id, too")
    if engine.traces is None:
        what = "was asked of an engine that does not keep all layers"
        raise OptionError.about("trace", given, what, f'start the engine with "traces": true in {KEY}')
    return given


def _wanted(given: object) -> Wanted | None:
    """What is read for traces, from true, false, or an object; OptionError where it cannot be read here."""
    if isinstance(given, bool):
        return Wanted() if given else None
    options = _mapping(given, "traces")
    for name, value in options.items():
        if name not in _READ:
            what = "is not among the readings of a trace in vLLM"
            raise OptionError.about(name, value, what, did_you_mean(name, _READ, f"there are {', '.join(_READ)}"))
        if name == "top":
            refuse_too_many(value)
        else:
            true_or_false(name, value)
    return Wanted(**options)


def _mapping(given: object, name: str) -> dict[str, Any]:
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise OptionError.about(name, given, "is not an object of options", 'give {"strategy": "valley", ...}')
    return dict(given)
