"""A model gives the numbers of one thread alone, whatever other threads and torch's settings do."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import layerlens as ll
from layerlens.models.tiny import tiny_model, tiny_tokenizer
from tests.needs_inspect import needs_inspect
from tests.thorough import combined, some

PROMPTS = [["a" * 9, "bcd" * 3], ["xyz" * 5, "q" * 20]]


def dropped_in(model: ll.Model, prompts: list[str], out: Path) -> Any:
    said = []
    for prompt in prompts:
        ids = torch.tensor([model.tokenizer(prompt).input_ids])
        said.append(model.hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8)[0].tolist())
    return said


def generated(model: ll.Model, prompts: list[str], out: Path) -> Any:
    found = ll.generate(model, prompts, max_new_tokens=8, strategy=ll.Fixed(offset=1), batch_size=2)
    return [one.token_ids for one in found]


def traced(model: ll.Model, prompts: list[str], out: Path) -> Any:
    run = ll.trace(model, prompts, max_new_tokens=4, batch_size=2, out=out, progress=False)
    return run.layers("entropy").tolist(), run.layers("attn_ratio").tolist(), run.tokens["next_token_id"].tolist()


def replayed(model: ll.Model, prompts: list[str], out: Path) -> Any:
    run = ll.trace(model, prompts, max_new_tokens=0, kl=True, out=out, progress=False)
    return run.layers("norm_ratio").tolist(), run.layers("kl_last_to_layer").tolist()


def loaded_again(model: ll.Model, prompts: list[str], out: Path) -> Any:
    return [part is None for part in ll.load(model.hf, model.tokenizer).sublayers]


DOORS = [generated, traced, replayed, loaded_again]


@pytest.mark.parametrize(("first", "second"), combined(DOORS, DOORS, n=6))
def test_two_threads_get_what_each_gets_alone(first: Any, second: Any, tmp_path: Path) -> None:
    model = ll.load(tiny_model("llama"), tiny_tokenizer())
    doors = (first, second)
    wanted = [door(model, PROMPTS[n], tmp_path / f"alone{n}") for n, door in enumerate(doors)]
    for attempt in range(3):
        outs = [tmp_path / f"{attempt}-{n}" for n in range(2)]
        work = [partial(door, model, PROMPTS[n], outs[n]) for n, door in enumerate(doors)]
        assert in_threads(work) == wanted


def test_passes_of_other_threads_are_neither_seen_nor_answered(tmp_path: Path) -> None:
    hf = tiny_model("llama")
    model = ll.load(hf, tiny_tokenizer())
    ids = torch.tensor([model.tokenizer("something else").input_ids])
    with torch.no_grad():
        own_logits = hf(ids).logits
    wanted = [generated(model, PROMPTS[0], tmp_path), traced(model, PROMPTS[0], tmp_path / "alone")]
    done = threading.Event()
    theirs: list[bool] = []

    def theirs_alone() -> None:
        with torch.no_grad():
            while not done.is_set():
                theirs.append(torch.equal(hf(ids).logits, own_logits))

    other = threading.Thread(target=theirs_alone)
    other.start()
    try:
        found = [generated(model, PROMPTS[0], tmp_path), traced(model, PROMPTS[0], tmp_path / "beside")]
    finally:
        done.set()
        other.join()
    assert found == wanted
    assert len(theirs) > 3
    assert all(theirs)


def test_the_drop_in_is_one_thread_s_and_answers_a_streamer_s(tmp_path: Path) -> None:
    model = ll.load(tiny_model("llama"), tiny_tokenizer())
    with ll.decoding(model, ll.Fixed(offset=1)) as log:
        wanted = dropped_in(model, PROMPTS[0], tmp_path)
        steps = log.steps

        def second() -> Any:
            with pytest.raises(ll.OptionError), ll.decoding(model, ll.Last()):
                pass
            return dropped_in(model, PROMPTS[0], tmp_path)  # in the context of the first

        assert in_threads([second, lambda: dropped_in(model, PROMPTS[0], tmp_path)]) == [wanted, wanted]
        assert len(log.steps) == 3 * len(steps)


def test_leaving_the_drop_in_waits_for_a_generation_of_another_thread(tmp_path: Path) -> None:
    model = ll.load(tiny_model("llama"), tiny_tokenizer())
    with ll.decoding(model, ll.Fixed(offset=1)):
        wanted = dropped_in(model, PROMPTS[1], tmp_path)
    began, found = threading.Event(), []

    class Begins:
        def put(self, value: Any) -> None:
            began.set()

        def end(self) -> None:
            pass

    def generate() -> None:
        for prompt in PROMPTS[1][:1]:
            ids = torch.tensor([model.tokenizer(prompt).input_ids])
            mask = torch.ones_like(ids)
            found.append(model.hf.generate(ids, attention_mask=mask, max_new_tokens=8, streamer=Begins())[0].tolist())

    with ll.decoding(model, ll.Fixed(offset=1)):
        thread = threading.Thread(target=generate)
        thread.start()
        began.wait(30)
    thread.join()
    assert found == wanted[:1]


def in_threads(work: list[Callable[[], Any]]) -> list[Any]:
    found: list[Any] = [None] * len(work)

    def do(n: int) -> None:
        found[n] = work[n]()

    threads = [threading.Thread(target=do, args=(n,)) for n in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


SETTINGS: dict[str, Callable[[], Any]] = {
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "another default device": lambda: default_device("meta"),
    "a device's context": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
}
STRATEGIES = [
    ll.Last(),
    ll.Fixed(offset=1, p=0.5),
    ll.Valley(window=3, p=0.5),
    ll.Valley(window=3, scan="lazy", criterion="margin"),
    ll.DoLa(),
    ll.SLED(),
]


def everything(model: ll.Model, out: Path) -> list[Any]:
    options: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 3, "repetition_penalty": 1.3, "batch_size": 2}
    prompts = PROMPTS[1]
    found: list[Any] = []
    for strategy in STRATEGIES:
        found.append([one.token_ids for one in ll.generate(model, prompts, strategy=strategy, **options)])
        drawn = ll.generate(model, prompts, strategy=strategy, temperature=0.8, top_p=0.9, **options)
        found.append([one.token_ids for one in drawn])
        ids = torch.tensor([model.tokenizer(prompts[0]).input_ids], device="cpu")
        with ll.decoding(model, strategy) as log:
            mask = torch.ones_like(ids)
            found.append(model.hf.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)[0].tolist())
        found.append(log.steps["selected_layer"].tolist())
    return [*found, traced(model, prompts, out / "generate"), replayed(model, prompts, out / "replay")]


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return everything(ll.load(tiny_model("gptj"), tiny_tokenizer()), tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("setting", some([pytest.param(one, id=name) for name, one in SETTINGS.items()], 3))
def test_torch_s_settings_change_no_token_and_no_number(
    setting: Callable[[], Any], wanted: list[Any], tmp_path: Path
) -> None:
    hf = tiny_model("gptj")
    with setting():
        model = ll.load(hf, tiny_tokenizer())
        assert everything(model, tmp_path / "inside") == wanted
    with setting() if setting is torch.inference_mode else nullcontext():
        assert model.foundation is not None
    assert everything(model, tmp_path / "after") == wanted


@pytest.mark.parametrize("setting", [default_dtype, torch.inference_mode], ids=["dtype", "inference"])
def test_a_folder_is_loaded_as_it_is_whatever_torch_s_settings(setting: Any, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "folder")
    tiny_tokenizer().save_pretrained(tmp_path / "folder")
    wanted = traced(ll.load(tmp_path / "folder"), PROMPTS[0], tmp_path / "plain")
    with setting(torch.float64) if setting is default_dtype else setting():
        assert traced(ll.load(tmp_path / "folder"), PROMPTS[0], tmp_path / "inside") == wanted


def test_autocast_is_refused_at_every_door(tmp_path: Path) -> None:
    hf = tiny_model("llama")
    model = ll.load(hf, tiny_tokenizer())
    ids = torch.tensor([model.tokenizer("hello").input_ids])
    doors: list[Callable[[], object]] = [
        lambda: ll.load(hf, tiny_tokenizer()),
        lambda: ll.generate(model, "hello", max_new_tokens=1),
        lambda: ll.trace(model, ["hello"], max_new_tokens=0, out=tmp_path / "run", progress=False),
        lambda: hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1),
    ]
    with ll.decoding(model, ll.Valley(window=2)), torch.autocast("cpu", dtype=torch.bfloat16):
        for door in doors:
            with pytest.raises(ll.ModelError, match=r"torch\.autocast"):
                door()
    assert not (tmp_path / "run").exists()


def test_what_is_no_model_is_refused() -> None:
    for door in (ll.generate, ll.trace):
        with pytest.raises(ll.OptionError, match="LlamaForCausalLM"):
            door(tiny_model("llama"), ["hello"], out="nowhere")  # type: ignore[operator]


@needs_inspect
def test_what_is_no_model_is_refused_by_an_ablation() -> None:
    with pytest.raises(ll.OptionError, match="LlamaForCausalLM"):
        ll.ablate(tiny_model("llama"), ["sample"], out="nowhere")  # type: ignore[arg-type]
    assert not Path("nowhere").exists()


@pytest.mark.parametrize("seed", [2**63, 2**70])
def test_a_seed_that_no_generator_takes_is_one_sentence(seed: int) -> None:
    model = ll.load(tiny_model("llama"), tiny_tokenizer())
    with pytest.raises(ll.OptionError, match="too large"):
        ll.generate(model, "hello", max_new_tokens=1, seed=seed)
    with pytest.raises(ll.OptionError, match="too large"), ll.decoding(model, ll.Last(), seed=seed):
        pass
    assert ll.generate(model, "hello", max_new_tokens=1, temperature=1.0, seed=2**63 - 1).token_ids
