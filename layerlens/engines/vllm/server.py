"""vLLM's own server, started with layerlens in it."""

import json
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any

from layerlens.engines.vllm.options import KEY, UNGUESSED, engine_options
from layerlens.errors import OptionError, spelled

_MODULE = "vllm.entrypoints.openai.api_server"
_OURS = {"--model": "model", "--additional-config": "strategy"}
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_PLACES = ("--host", "--uds", "--config")  # where it listens, or a file that may say so
_GROUPS = ("vllm.general_plugins", "vllm.endpoint_plugins", "vllm.io_processor_plugins", "vllm.stat_logger_plugins")


def command(model: str, options: Mapping[str, Any], arguments: Sequence[str]) -> list[str]:
    """The command that starts vLLM's server. It can be reached from this machine only, unless an argument says where.
    A server that others may reach takes no id that is short enough to be guessed, unless the options say otherwise.

    Args:
        model: as vLLM takes it.
        options: of the engine, as `engine_options` takes them.
        arguments: further ones, which vLLM reads.

    Raises:
        OptionError: an option of the engine is wrong, or an argument says what ours say.
    """
    engine_options(dict(options))
    for argument in arguments:
        name = argument.partition("=")[0]
        if name in _OURS:
            option = _OURS[name]
            raise OptionError.about(option, argument, "is given to vLLM too", f"leave it out after {spelled(option)}")
    places = _places(arguments)
    own = dict(options) if set(places) <= set(_LOOPBACK) else {"shortest_id": UNGUESSED, **options}
    words = [sys.executable, "-m", _MODULE, "--model", model, "--additional-config", json.dumps({KEY: own})]
    if not places:
        words += ["--host", _LOOPBACK[0]]  # vLLM's own default is every interface of the machine
    return [*words, *arguments]


def _places(arguments: Sequence[str]) -> list[str]:
    """What the arguments give for where the server listens: an address, a path, or a file that may say so."""
    found = []
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") in _PLACES:
            found.append(value if equals else "".join(arguments[index + 1 : index + 2]))
    return found


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """The environment for vLLM's server, in which it gives out records over HTTP.

    vLLM adds routes of plugins only where VLLM_PLUGINS names them, and loads no other plugins then. So all that are
    installed are named, unless the variable is set.
    """
    names = sorted({KEY, *(one.name for group in _GROUPS for one in entry_points(group=group))})
    return {"VLLM_PLUGINS": ",".join(names), **given}
