"""A server under many requests at once, a third of which leave before they are answered."""

import asyncio
import os
import random
import time
from pathlib import Path

import aiohttp
import pytest

import layerlens as ll
from tests.engines.vllm import servers
from tests.engines.vllm.engines import ours, ragged

SECONDS = float(os.environ.get("LAYERLENS_LOAD_SECONDS", "120"))
WARM_UP = 20.0  # the first requests of each kind make what later ones share
AT_ONCE = 64
LONGEST = 40
PROMPTS = ragged(12)
MIX = (
    ({}, ll.Valley(window=4)),
    ({"layerlens_strategy": "last"}, ll.Last()),
    ({"layerlens_window": 2}, ll.Valley(window=2)),
    ({"layerlens_strategy": "last-1"}, ll.Fixed(1)),
)


@pytest.fixture(scope="module")
def wanted(folder_of):
    return [ours(folder_of("qwen3"), PROMPTS, strategy, LONGEST) for _, strategy in MIX]


def test_answers_records_and_memory_under_load(folder_of, wanted, tmp_path):
    folder, log = folder_of("qwen3"), tmp_path / "log"
    # the records of requests that have left are never fetched
    with servers.server(folder, log, "--record-bytes", "1000000", "--traces", **{"max-num-seqs": 32}) as (address, pid):
        found = asyncio.run(loaded(address, pid, wanted))
        started = set(servers.processes(pid))
        assert servers.call(f"{address}/v1/models")[0] == 200
    print({name: value for name, value in found.items() if name != "wrong"})
    assert found["finished"] > 4 * AT_ONCE
    assert found["left"] > found["finished"] / 5
    assert found["wrong"] == []
    used = found["bytes"]
    quarter = len(used) // 4  # the first is left out: on a slow machine the server still warms up
    first, last = (sum(part) / len(part) for part in (used[quarter : 2 * quarter], used[-quarter:]))
    assert abs(last / first - 1) < 0.02, (first, last)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(Path(f"/proc/{one}").exists() for one in started):
        time.sleep(0.5)
    assert not [one for one in started if Path(f"/proc/{one}").exists()]


async def loaded(address, pid, wanted):
    """What came of requests that were sent until the time was over."""
    found = {"finished": 0, "left": 0, "wrong": [], "bytes": []}
    deadline = time.monotonic() + WARM_UP + SECONDS
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(address, timeout=timeout, connector=connector) as session:
        senders = [send(session, number, deadline, wanted, found) for number in range(AT_ONCE)]
        await asyncio.gather(watch(pid, deadline, found), *senders)
    return found


async def watch(pid, deadline, found):
    await asyncio.sleep(WARM_UP)
    while time.monotonic() < deadline:
        found["bytes"].append(sum(servers.processes(pid).values()))
        await asyncio.sleep(1)


async def send(session, number, deadline, wanted, found):
    """One request after the other."""
    draw, count = random.Random(number), 0
    while time.monotonic() < deadline:
        count += 1
        row, way, n_tokens = draw.randrange(len(PROMPTS)), draw.randrange(len(MIX)), draw.randint(1, LONGEST)
        id = f"{number}-{count}"
        options = {**MIX[way][0], "layerlens_id": id}
        if draw.random() < 0.2:
            options["layerlens_trace"] = "all"
        body = {"model": "m", "prompt": PROMPTS[row], "max_tokens": n_tokens, "temperature": 0, "ignore_eos": True}
        body |= {"return_token_ids": True, "vllm_xargs": options}
        if draw.random() < 1 / 3:
            try:
                await asyncio.wait_for(answered(session, body), draw.uniform(0.01, 0.6))
                found["finished"] += 1
            except asyncio.TimeoutError:
                found["left"] += 1
            continue
        answer = await answered(session, body)
        async with session.get(f"/v1/layerlens/records/{id}") as response:
            record = await response.json() if response.status == 200 else None
        tokens, outputs = answer["choices"][0]["token_ids"], wanted[way]
        good = tokens == outputs.outputs[row][:n_tokens] and record is not None
        good = good and record["place"][:n_tokens] == list(range(n_tokens))
        layers = outputs.decisions[row].selected_layer.tolist()[:n_tokens]
        good = good and record["selected_layer"][:n_tokens] == layers
        if good and "layerlens_trace" in options:
            n_states = len(PROMPTS[row]) + n_tokens - 1
            good = record["layers"]["position"][:n_states] == list(range(n_states))
        if not good:
            found["wrong"].append((body, answer, record))
        found["finished"] += 1


async def answered(session, body):
    async with session.post("/v1/completions", json=body) as response:
        assert response.status == 200, await response.text()
        return await response.json()
