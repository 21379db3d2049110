"""The server of `layerlens serve`: options by HTTP, refusals with status 400, records once."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

import layerlens as ll
from tests.engines.vllm.engines import Answers, assert_same, ours, ragged

PROMPTS = ragged(6)
MIX = (
    ({}, ll.Valley(window=4)),
    ({"layerlens_strategy": "last"}, ll.Last()),
    ({"layerlens_window": 2}, ll.Valley(window=2)),
    ({"layerlens_strategy": "last-1"}, ll.Fixed(1)),
    ({"layerlens_p": 0.0}, ll.Last()),
    ({"layerlens_strategy": "valley", "layerlens_criterion": "margin"}, ll.Valley(window=4, criterion="margin")),
)


@pytest.fixture(scope="module")
def server(folder_of, tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    ours = ["serve", "--model", folder_of("qwen3"), "--strategy", "valley", "--window", "4"]
    options = {"served-model-name": "m", "dtype": "float32", "max-model-len": 64, "max-num-seqs": 8}
    options |= {"port": port, "host": "127.0.0.1"}
    theirs = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    program = [sys.executable, "-m", "layerlens", *ours, "--", "--enforce-eager", *theirs]
    # a server has processes of its own, and tells what goes wrong
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "INFO"}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING")
    with log.open("w") as output:
        process = subprocess.Popen(program, stdout=output, stderr=output, env=environment)
    try:
        deadline = time.monotonic() + 600
        while True:
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                break
            except OSError:
                time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def call(url, body=None):
    """Status and answer."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "application/json"})) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def complete(server, prompt, **options):
    body = {"model": "m", "prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    return call(f"{server}/v1/completions", {**body, "return_token_ids": True, "vllm_xargs": options})


def test_a_request_has_the_tokens_and_the_records_of_its_own_strategy(server, folder_of):
    tokens, records = [], []
    for number, (prompt, (options, _)) in enumerate(zip(PROMPTS, MIX, strict=True)):
        status, answer = complete(server, prompt, layerlens_id=f"r {number}", **options)
        assert status == 200
        tokens.append(answer["choices"][0]["token_ids"])
        status, record = call(f"{server}/layerlens/records/r%20{number}")
        assert status == 200, record
        records.append(record)
    for row, (_, strategy) in enumerate(MIX):
        assert_same(Answers(tokens, records), ours(folder_of("qwen3"), PROMPTS, strategy, 12), [row])


def test_records_are_given_out_once_and_only_where_they_were_asked_for(server):
    assert call(f"{server}/layerlens/records/never")[0] == 404
    assert complete(server, PROMPTS[0], layerlens_id="once")[0] == 200
    assert call(f"{server}/layerlens/records/once")[0] == 200
    status, answer = call(f"{server}/layerlens/records/once")
    assert status == 404
    assert "'once'" in json.dumps(answer)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layerlens_strategy": "middle"}, "strategy 'middle' is unknown"),
        ({"layerlens_window": 9}, "window 9 does not fit a model of 4 layers"),
        ({"layerlens_strategy": "sled"}, "reads layer 0"),
        ({"layerlens_windw": 2}, "did you mean window"),
        ({"layerlens_p": 2}, "p 2 is not a probability"),
    ],
)
def test_a_bad_option_has_status_400_and_the_server_goes_on(server, options, said):
    status, answer = complete(server, PROMPTS[0], **options)
    assert status == 400
    assert said in answer["error"]["message"]
    assert complete(server, PROMPTS[0])[0] == 200
