"""`layerlens serve`, up to the start of vLLM. tests/engines/vllm/test_server.py starts it."""

import json
import sys
from importlib.util import find_spec

import pytest

from layerlens.engines.vllm.options import KEY, UNGUESSED
from layerlens.engines.vllm.server import command, environment
from layerlens.errors import OptionError
from tests.refusals import refused


def test_the_command_is_vllms_server_with_our_options():
    given = {"strategy": "valley", "window": 4, "also": ["sled"]}
    words = command("M", given, ["--port", "8000"])
    assert words[:5] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", "M"]
    assert words[5] == "--additional-config"
    assert json.loads(words[6]) == {KEY: given}
    assert words[7:] == ["--host", "127.0.0.1", "--port", "8000"]


@pytest.mark.parametrize("given", [["--host", "0.0.0.0"], ["--host=::"], ["--uds", "/tmp/s"], ["--config", "c.yaml"]])
def test_who_says_where_the_server_listens_is_heard(given):
    assert command("M", {"strategy": "valley"}, given)[7:] == given


@pytest.mark.parametrize(
    ("arguments", "options", "shortest"),
    [
        ([], {}, None),
        (["--host", "127.0.0.1"], {}, None),
        (["--host=localhost", "--port", "1"], {}, None),
        (["--host", "0.0.0.0"], {}, UNGUESSED),
        (["--host=0.0.0.0"], {}, UNGUESSED),
        (["--host", "127.0.0.1", "--host", "0.0.0.0"], {}, UNGUESSED),
        (["--uds", "/tmp/s"], {}, UNGUESSED),
        (["--config", "c.yaml"], {}, UNGUESSED),
        (["--host", "0.0.0.0"], {"shortest_id": 4}, 4),
    ],
)
def test_a_server_for_others_takes_no_id_that_can_be_guessed(arguments, options, shortest):
    own = json.loads(command("M", {"strategy": "valley", **options}, arguments)[6])[KEY]
    assert own.get("shortest_id") == shortest


@pytest.mark.parametrize("argument", ["--model=other", "--model", "--additional-config", "--additional-config={}"])
def test_what_we_say_is_not_said_again(argument):
    with refused(OptionError, given=argument, option="model" if "model" in argument else "strategy"):
        command("M", {"strategy": "valley"}, [argument])


def test_all_plugins_are_named_unless_somebody_chose():
    assert "layerlens" in environment({})["VLLM_PLUGINS"].split(",")
    assert environment({"VLLM_PLUGINS": "other", "A": "1"}) == {"VLLM_PLUGINS": "other", "A": "1"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "FOLDER", "--strategy", "vally"], "did you mean valley"),
        (["--model", "FOLDER", "--also", "sledd"], "did you mean sled"),
        (["--model", "FOLDER", "--window", "9"], "--window 9"),
        (["--model", "no-such-folder/x"], "no-such-folder/x"),
        (["--model", "FOLDER", "--windw", "3"], "--window"),
        (["--model", "smollm2-135m-instruct"], "give a hub id or a folder"),
        (["--model", "FOLDER", "--strategy", "last", "--p", "0.5"], "--p 0.5"),
        (["--model", "FOLDER", "--lens", "linear:nothing.safetensors"], "--lens linear:nothing.safetensors"),
    ],
)
def test_mistakes_are_answered_before_vllm_is_looked_for(arguments, said, cli, tiny_folder):
    folder = tiny_folder("llama")
    code, out, err = cli("serve", *(folder if word == "FOLDER" else word for word in arguments))
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here, and would start")
def test_without_vllm_a_sentence_names_the_versions(cli, tiny_folder):
    code, out, err = cli("serve", "--model", tiny_folder("llama"), "--window", "3")
    assert (code, out) == (2, "")
    assert ">=0.32,<0.34" in err
    assert err.count("\n") == 1
