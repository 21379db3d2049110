"""The server of `layerlens serve`: options by HTTP, refusals with status 400, records and traces once."""

import json

import pytest

import layerlens as ll
from tests.engines.vllm import servers
from tests.engines.vllm.engines import Answers, assert_same, ours, ragged
from tests.engines.vllm.servers import call
from tests.engines.vllm.test_traces import assert_traced

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
    log = tmp_path_factory.mktemp("server") / "log"
    with servers.server(folder_of("qwen3"), log, "--traces") as (address, _):
        yield address


def complete(server, prompt, **options):
    body = {"model": "m", "prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    return call(f"{server}/v1/completions", {**body, "return_token_ids": True, "vllm_xargs": options})


def test_a_request_has_the_tokens_and_the_records_of_its_own_strategy(server, folder_of):
    tokens, records = [], []
    for number, (prompt, (options, _)) in enumerate(zip(PROMPTS, MIX, strict=True)):
        status, answer = complete(server, prompt, layerlens_id=f"r {number}", **options)
        assert status == 200
        tokens.append(answer["choices"][0]["token_ids"])
        status, record = call(f"{server}/v1/layerlens/records/r%20{number}")
        assert status == 200, record
        records.append(record)
    for row, (_, strategy) in enumerate(MIX):
        assert_same(Answers(tokens, records), ours(folder_of("qwen3"), PROMPTS, strategy, 12), [row])


def test_a_trace_comes_with_the_records(server, folder_of):
    for trace, first in (("all", 0), ("generated", None)):
        status, answer = complete(server, PROMPTS[1], layerlens_id=trace, layerlens_trace=trace)
        assert status == 200
        status, record = call(f"{server}/v1/layerlens/records/{trace}")
        assert status == 200
        found = Answers([answer["choices"][0]["token_ids"]], [record])
        assert_traced(found, folder_of("qwen3"), [PROMPTS[1]], [0], first=first)


def test_numbers_that_were_not_read_are_null(server):
    """With a floor that no entropy reaches, only the last layer is read."""
    assert complete(server, PROMPTS[0], layerlens_id="floor", layerlens_entropy_floor=20.0)[0] == 200
    status, record = call(f"{server}/v1/layerlens/records/floor")
    assert status == 200
    assert {tuple(values[:-1]) for values in record["values"]} == {(None, None, None)}
    assert all(values[-1] > 0 for values in record["values"])


def test_records_are_given_out_once_and_only_where_they_were_asked_for(server):
    assert call(f"{server}/v1/layerlens/records/never")[0] == 404
    assert complete(server, PROMPTS[0], layerlens_id="once")[0] == 200
    assert call(f"{server}/v1/layerlens/records/once")[0] == 200
    status, answer = call(f"{server}/v1/layerlens/records/once")
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
        ({"layerlens_trace": "all"}, "needs a name"),
        ({"layerlens_trace": "every", "layerlens_id": "a"}, "trace 'every' is unknown"),
    ],
)
def test_a_bad_option_has_status_400_and_the_server_goes_on(server, options, said):
    status, answer = complete(server, PROMPTS[0], **options)
    assert status == 400
    assert said in answer["error"]["message"]
    assert complete(server, PROMPTS[0])[0] == 200


def test_records_need_the_key_that_answers_need(folder_of, tmp_path, monkeypatch):
    key = "a-key-that-nobody-has"
    monkeypatch.setenv("VLLM_API_KEY", key)
    with servers.server(folder_of("qwen3"), tmp_path / "log") as (address, _):
        body = {"model": "m", "prompt": "one two", "max_tokens": 2, "vllm_xargs": {"layerlens_id": "own"}}
        assert call(f"{address}/v1/completions", body)[0] == 401
        assert call(f"{address}/v1/completions", body, key)[0] == 200
        records = f"{address}/v1/layerlens/records/own"
        for wrong in (None, "", key[:-1], key + "x"):
            assert call(records, key=wrong)[0] == 401
        assert call(records.replace("/v1", ""), key=None)[0] == 404
        status, record = call(records, key=key)
        assert (status, record["place"][:2]) == (200, [0, 1])
    assert key not in (tmp_path / "log").read_text()
