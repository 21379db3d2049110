"""Load: what is repeated leaves nothing behind, and what is long or many is still right."""

import asyncio
import gc
import os
import random
import threading
from pathlib import Path

import pytest

import layerlens as ll
from layerlens.models import tiny_model, tiny_tokenizer
from tests.conftest import tiny
from tests.hard.doors import cases
from tests.needs_inspect import needs_inspect


def fresh():
    return ll.load(tiny_model("llama"), tokenizer=tiny_tokenizer())


def resident():
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def held(model):
    """What a process holds: open files, threads, hooks, and objects that the garbage collector knows."""
    gc.collect()
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.hf.modules())
    methods = sum("forward" in vars(module) for module in model.hf.modules())
    return {
        "files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        "threads": threading.active_count(),
        "hooks": hooks,
        "methods": methods,
    }, len(gc.get_objects())


def test_repeated_traces_and_generations_leave_nothing_behind(tmp_path):
    model = fresh()
    few = {"max_new_tokens": 3, "strategy": ll.Valley(window=3)}

    def once(number):
        ll.trace(model, ["abc", "x"], out=tmp_path / f"{number}", progress=False, **few)
        ll.generate(model, "abc", **few)
        ll.generate(model, "abc", max_new_tokens=8, draft=ll.EveryOther(length=2))
        ll.open_run(tmp_path / f"{number}").by_layer()

    for number in range(10):
        once(f"before {number}")
    before, n_objects = held(model)
    memory = resident()
    n = cases(20, 200)
    for number in range(n):
        once(number)
    after, more_objects = held(model)
    assert after == before
    assert more_objects - n_objects < 5 * n, "objects of every call are kept"
    assert resident() - memory < 40 * 2**20


def test_a_prompt_that_fills_the_context_and_a_window_of_all_layers(tmp_path):
    model = tiny("llama")
    room = model.context_length
    text = "x" * (room - 2)
    assert len(model.tokenizer(text).input_ids) == room - 2
    run = ll.trace(model, [text], out=tmp_path / "run", max_new_tokens=2, strategy=ll.Valley(window=4), progress=False)
    assert run.prompts[["n_prompt_tokens", "n_generated_tokens"]].to_numpy().tolist() == [[room - 2, 2]]
    assert run.positions["valley_layer"].between(1, 4).all()
    with pytest.raises(ll.PromptError):
        ll.trace(model, [text + "x"], out=tmp_path / "more", max_new_tokens=2, progress=False)


def test_many_prompts_of_one_token(tmp_path):
    model, n = tiny("llama"), cases(300, 10_000)
    letters = "abcdefghij"
    texts = [letters[number % 10] for number in range(n)]
    run = ll.trace(model, texts, out=tmp_path / "run", max_new_tokens=1, batch_size=100, progress=False)
    assert len(run.positions) == n
    first = run.layers("entropy")
    for number in range(10, n):  # the same letter gives the same states, wherever it stands
        assert abs(first[number] - first[number % 10]).max() < 1e-4, number


@needs_inspect
@pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning")
@pytest.mark.filterwarnings("ignore:The 'initial' parameter is deprecated:DeprecationWarning")
def test_clients_of_the_provider_of_which_a_third_vanish(tiny_folder):
    from inspect_ai.model import GenerateConfig, get_model

    model = ll.load(tiny_folder("llama"))
    chance = random.Random(0)
    asked = [(chance.choice("abcxyz") * chance.randrange(1, 60), chance.randrange(1, 24)) for _ in range(64)]
    vanishing = set(chance.sample(range(64), 21))

    async def client(provider, number):
        text, most = asked[number]
        call = asyncio.ensure_future(provider.generate(text, config=GenerateConfig(max_tokens=most)))
        if number in vanishing:
            await asyncio.sleep(chance.uniform(0, 0.3))
            call.cancel()
            return None
        return await call

    async def all_at_once():
        provider = get_model(
            "layerlens/tiny", model_path=tiny_folder("llama"), strategy="valley", window=3, memoize=False
        )
        answers = await asyncio.gather(*(client(provider, number) for number in range(64)), return_exceptions=True)
        last = await provider.generate("abc", config=GenerateConfig(max_tokens=3))
        return [*answers, last]

    *answers, last = asyncio.run(asyncio.wait_for(all_at_once(), 120))
    assert last.completion
    for number, answer in enumerate(answers):
        if number not in vanishing:
            text, most = asked[number]
            alone = ll.generate(model, text, strategy=ll.Valley(window=3), max_new_tokens=most)
            assert answer.completion == alone.text, number
