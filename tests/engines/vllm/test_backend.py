"""`generate`, `trace` and `ablate` of a model that vLLM runs give what they give with transformers."""

from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch

import layerlens as ll
from layerlens.datasets import Prompt
from layerlens.decode.options import GenerateOptions
from layerlens.engines.vllm import backend
from layerlens.lens.files import Stored, write_lens
from layerlens.lens.opening import made_for, open_lens
from layerlens.records.evaluation import read_answers, read_manifest
from tests.refusals import refused

TEXTS = [
    "Hello there, you",
    "a b c d e f g h i",
    "The capital of France is the",
    "x",
    "once more, a longer text of words",
]
ENGINE = {"enforce_eager": True, "max_model_len": 128, "max_num_seqs": 3}
OPTIONS = {"max_new_tokens": 10, "eos_token_id": -1}


def lens_of(model, path):
    """A drawn lens of the model, as an option names it."""
    draws = torch.Generator().manual_seed(2)
    weights = {layer: torch.randn(model.d_model, model.d_model, generator=draws) for layer in range(model.n_layers)}
    write_lens(path, Stored("linear", weights, {}, model.d_model, model.n_layers, made_for(model)))
    return f"linear:{path}"


@contextmanager
def both(folder, **engine):
    """The model in transformers, and in vLLM."""
    by_vllm = ll.load(folder, backend="vllm", dtype="float32", engine_options=ENGINE | engine)
    try:
        yield ll.load(folder, dtype="float32"), by_vllm
    finally:
        while backend._running:
            backend._running.pop().close()


@pytest.fixture(scope="module")
def models(folder_of):
    with both(folder_of("qwen3")) as pair:
        yield pair


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        (ll.Valley(window=4), {}),
        (ll.Last(), {"repetition_penalty": 1.3}),
        (ll.Valley(window=3, criterion="margin"), {"min_new_tokens": 4}),
        (ll.Valley(window=4, shift=-1, entropy_floor=4.0), {}),
        (ll.DoLa(candidates=(1, 2), per="row"), {}),
        (ll.Fixed(1), {}),
    ],
)
def test_texts_and_decisions(models, strategy, options):
    ours, theirs = (ll.generate(model, TEXTS, strategy=strategy, batch_size=5, **OPTIONS | options) for model in models)
    for one, other in zip(ours, theirs, strict=True):
        assert (one.token_ids, one.text, one.finish_reason) == (other.token_ids, other.text, other.finish_reason)
        exact = ["position", "next_token_id", "last_token_id", "selected_layer", "valley_layer"]
        pd.testing.assert_frame_equal(one.steps[exact], other.steps[exact])


def test_what_ends_a_text(models):
    """A token, and a string that is complete in the middle of a text."""
    ours, _ = models
    free = ll.generate(ours, TEXTS, strategy="last", batch_size=5, **OPTIONS)
    ends = [one.token_ids[3] for one in free]
    stop = free[0].text[2:4]
    for options in ({"eos_token_id": ends}, {"stop_strings": [stop]}, {"eos_token_id": ends, "min_new_tokens": 6}):
        one, other = (ll.generate(model, TEXTS, strategy="last", batch_size=5, **OPTIONS | options) for model in models)
        assert [text.token_ids for text in one] == [text.token_ids for text in other]
        assert [text.finish_reason for text in one] == [text.finish_reason for text in other]
        assert "stop" in {text.finish_reason for text in other}


def test_what_is_drawn_depends_on_the_seed_and_not_on_the_other_prompts(models):
    _, model = models
    drawn = {"temperature": 1.0, "top_k": 50, "top_p": 0.9, **OPTIONS}
    whole = [one.token_ids for one in ll.generate(model, TEXTS, strategy="last", batch_size=5, seed=3, **drawn)]
    again = [one.token_ids for one in ll.generate(model, TEXTS, strategy="last", batch_size=5, seed=3, **drawn)]
    other = [one.token_ids for one in ll.generate(model, TEXTS, strategy="last", batch_size=5, seed=4, **drawn)]
    assert whole == again
    assert whole != other


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"kl": True, "js": True, "top": 3, "targets": True}, id="generated"),
        pytest.param({"targets": True, "lens": "LENS", "strategy": "valley", "window": 4}, id="through a lens"),
        pytest.param({"positions": "all", "batch_size": 2}, id="all positions"),
        pytest.param({"max_new_tokens": 0, "batch_size": 2, "targets": True}, id="given texts"),
    ],
)
def test_traces(models, options, tmp_path):
    settings = {"strategy": "last", "progress": False, **OPTIONS, **options}
    if "lens" in settings:
        settings["lens"] = lens_of(models[0], tmp_path / "lens.safetensors")
    if not settings["max_new_tokens"]:
        settings.pop("eos_token_id")
    ours, theirs = (
        ll.trace(model, TEXTS, out=tmp_path / name, **settings)
        for model, name in zip(models, ("ours", "theirs"), strict=True)
    )
    pd.testing.assert_frame_equal(ours.positions, theirs.positions)
    pd.testing.assert_frame_equal(ours.prompts.drop(columns="seconds"), theirs.prompts.drop(columns="seconds"))
    names = ["norm_ratio", "io_cosine", "entropy"]
    names += ["kl_last_to_layer", "js_from_last", "top_k_probs"] if "top" in options else []
    names += ["next_log_prob"] if "targets" in options else []
    for name in names:
        np.testing.assert_allclose(ours.layers(name), theirs.layers(name), atol=1e-3, err_msg=name)
    for name in ["top_token_id", *(["next_rank"] if "targets" in options else [])]:
        np.testing.assert_array_equal(ours.layers(name), theirs.layers(name), err_msg=name)
    assert ours.manifest.get("lens") == theirs.manifest.get("lens")
    assert np.isnan(theirs.layers("attn_ratio")).all()
    assert theirs.manifest["model"]["backend"] == "vllm"
    assert theirs.manifest["totals"]["runner"] == "V1"
    assert theirs.manifest["hardware"]["engine_version"].startswith("0.3")
    assert theirs.manifest["hardware"]["engine_options"]["max_num_seqs"] == 3


def test_a_trace_that_was_interrupted_is_resumed_and_shards_are_merged(models, tmp_path, monkeypatch):
    _, model = models
    settings = {"strategy": "valley", "window": 4, "progress": False, **OPTIONS}
    whole = ll.trace(model, TEXTS, out=tmp_path / "whole", **settings)
    recorded = backend.Tracing.recorded

    def interrupted(self, *given):
        for count, found in enumerate(recorded(self, *given)):
            if count == 2:
                raise KeyboardInterrupt
            yield found

    with monkeypatch.context() as patch:
        patch.setattr(backend.Tracing, "recorded", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ll.trace(model, TEXTS, out=tmp_path / "part", **settings)
    assert len(ll.open_run(tmp_path / "part").prompts) == 2
    asked = []

    def counted(self, batches, *more):
        asked.extend(batches)
        return recorded(self, batches, *more)

    monkeypatch.setattr(backend.Tracing, "recorded", counted)
    part = ll.trace(model, TEXTS, out=tmp_path / "part", resume=True, **settings)
    assert len(asked) == 3
    assert_equal(part, whole)
    data = ll.read_prompts(prompt_file(tmp_path))
    whole = ll.trace(model, data, out=tmp_path / "of file", **settings)
    for number in (1, 2):
        ll.trace(model, data.shard(number, 2), out=tmp_path / f"shard{number}", **settings)
    assert_equal(ll.merge([tmp_path / "shard1", tmp_path / "shard2"], out=tmp_path / "merged"), whole)


def prompt_file(folder):
    path = folder / "texts.txt"
    path.write_text("\n".join(TEXTS), encoding="utf-8")
    return path


def assert_equal(one, other):
    order = ["prompt_id", "position"]
    frames = (run.positions.sort_values(order).reset_index(drop=True) for run in (one, other))
    pd.testing.assert_frame_equal(*frames)
    places = [run.positions.reset_index(drop=True).sort_values(order).index for run in (one, other)]
    for name in ("norm_ratio", "entropy", "top_token_id"):
        np.testing.assert_allclose(one.layers(name)[places[0]], other.layers(name)[places[1]], atol=1e-5)


def test_another_model_of_the_same_shapes_is_not_resumed(models, folder_of, tmp_path):
    import shutil

    _, model = models
    settings = {"progress": False, **OPTIONS}
    ll.trace(model, TEXTS[:2], out=tmp_path / "run", **settings)
    changed = tmp_path / "changed"
    shutil.copytree(folder_of("qwen3"), changed)
    other = ll.load(str(changed), dtype="float32")
    with torch.no_grad():
        other.hf.model.layers[0].mlp.up_proj.weight *= 1.01
    other.hf.save_pretrained(changed)
    again = ll.load(str(changed), backend="vllm", dtype="float32", engine_options=ENGINE)
    with refused(ll.RunError, given=tmp_path / "run"):
        ll.trace(again, TEXTS[:2], out=tmp_path / "run", resume=True, **settings)
    assert not again.backend.running


def submitted(requests, text, strategy, **options):
    return requests.submit(Prompt("a", text, None), strategy, GenerateOptions(**options))


def test_requests_that_come_one_by_one_are_answered_as_generate_answers(models):
    """More than the engine has room for, each with its own strategy, options and seed; one leaves, one needs another
    engine."""
    _, model = models
    asks = [
        (TEXTS[number % len(TEXTS)], strategy, {**OPTIONS, "max_new_tokens": 3 + number, "seed": number, **more})
        for number, (strategy, more) in enumerate(
            2 * [(ll.Valley(window=4), {}), (ll.Last(), {"repetition_penalty": 1.3}), (ll.Valley(window=4, p=0.5), {})]
        )
    ]
    with backend.requests(model, open_lens(None, model), [strategy for _, strategy, _ in asks]) as requests:
        futures = [submitted(requests, text, strategy, **options) for text, strategy, options in asks]
        gone = submitted(requests, TEXTS[2], ll.Last(), max_new_tokens=100)
        gone.cancel()
        other = submitted(requests, "a b", ll.Fixed(3), **OPTIONS)  # a layer that the engine was not started for
        for future, (text, _, options) in zip(futures, asks, strict=True):
            answer = future.result(timeout=300)
            assert answer.log_probs is None
            assert answer.prompt.text == text
            assert len(answer.generation.token_ids) == options["max_new_tokens"]
        assert len(other.result(timeout=300).generation.token_ids) == 10
        answers = [future.result().generation for future in futures]
        with refused(ll.OptionError, "backend", "vllm"):
            requests.submit(Prompt("a", "x", None), ll.Last(), GenerateOptions(), 3)
        with refused(ll.OptionError, "stop_strings", ["x"]):
            submitted(requests, "a", ll.Last(), stop_strings=["x"], min_new_tokens=2)
    for answer, (text, strategy, options) in zip(answers, asks, strict=True):
        alone = ll.generate(model, text, strategy=strategy, **options)
        assert answer.token_ids == alone.token_ids
        assert answer.text == alone.text
        pd.testing.assert_frame_equal(answer.steps, alone.steps)
    with refused(ll.ModelError):
        submitted(requests, "a", ll.Last(), max_new_tokens=4)


# inspect asks tenacity for what that has renamed, and leaves streams to the garbage collector
@pytest.mark.filterwarnings("ignore")
def test_an_ablation_and_its_evaluation(models, tmp_path):
    pytest.importorskip("inspect_evals", reason="needs the extra eval")
    options = {"arms": ["valley", "last-1"], "p": [0, 1], "window": 4, "limit": 4, "max_new_tokens": 10}
    ours, theirs = (
        ll.ablate(model, ["sample"], out=tmp_path / name, **options)
        for model, name in zip(models, ("ours", "theirs"), strict=True)
    )
    pd.testing.assert_frame_equal(ours, theirs)
    assert set(read_answers(tmp_path / "theirs").to_pandas()["outcome"]) == {"scored"}
    assert read_manifest(tmp_path / "theirs")["model"]["backend"] == "vllm"
    with refused(ll.OptionError, "trace", True):
        ll.evaluate(models[1], ["sample"], out=tmp_path / "traced", limit=2, trace={})
    assert not (tmp_path / "traced").exists()


def test_a_text_that_the_engine_would_cut_off_is_refused(models, folder_of, tmp_path):
    _, model = models
    short = ll.load(folder_of("qwen3"), backend="vllm", engine_options=ENGINE | {"max_model_len": 32})
    with refused(ll.PromptError, "engine_options", 32, advice="max_model_len"):
        ll.trace(short, ["a b c"], out=tmp_path / "run", max_new_tokens=31, progress=False)
    assert not (tmp_path / "run").exists()
    with refused(ll.PromptError, "engine_options", 32):
        ll.generate(short, "a b c", max_new_tokens=31)
    with backend.requests(short, open_lens(None, short)) as requests:
        long, fits = (submitted(requests, "a b c", ll.Last(), max_new_tokens=most) for most in (31, 10))
        with refused(ll.PromptError, "engine_options", 32):
            long.result(timeout=300)
        assert len(fits.result(timeout=300).generation.token_ids) <= 10
    assert len(ll.generate(model, "a", **OPTIONS).token_ids) == 10


@pytest.mark.parametrize(("options", "engine"), [({"temperature": 3.0}, {}), ({}, {"max_model_length": 3})])
def test_a_run_is_replaced_only_once_the_engine_runs_and_takes_the_options(folder_of, tmp_path, options, engine):
    model = ll.load(folder_of("qwen3"), backend="vllm", dtype="float32", engine_options=ENGINE)
    before = ll.trace(model, TEXTS[:2], out=tmp_path / "run", progress=False, **OPTIONS).positions
    other = ll.load(folder_of("qwen3"), backend="vllm", dtype="float32", engine_options=ENGINE | engine)
    with pytest.raises(ll.LayerlensError):
        ll.trace(other, TEXTS, out=tmp_path / "run", overwrite=True, progress=False, **OPTIONS | options)
    pd.testing.assert_frame_equal(ll.open_run(tmp_path / "run").positions, before)


def test_a_run_is_not_resumed_with_engine_options_that_change_numbers(models, folder_of, tmp_path):
    _, model = models
    settings = {"out": tmp_path / "run", "progress": False, **OPTIONS}
    ll.trace(model, TEXTS[:2], **settings)
    same = ll.load(folder_of("qwen3"), backend="vllm", dtype="float32", engine_options=ENGINE | {"max_num_seqs": 2})
    ll.trace(same, TEXTS[:2], resume=True, **settings)
    dummy = ENGINE | {"load_format": "dummy"}
    other = ll.load(folder_of("qwen3"), backend="vllm", dtype="float32", engine_options=dummy)
    with refused(ll.RunError, given=tmp_path / "run"):
        ll.trace(other, TEXTS[:2], resume=True, **settings)


def test_a_complete_run_is_resumed_without_an_engine(models, tmp_path, monkeypatch):
    _, model = models
    settings = {"out": tmp_path / "run", "progress": False, **OPTIONS}
    before = ll.trace(model, TEXTS[:2], **settings).positions
    monkeypatch.setattr(backend, "ready", lambda *_: pytest.fail("an engine was asked for"))
    pd.testing.assert_frame_equal(ll.trace(model, TEXTS[:2], resume=True, **settings).positions, before)


def test_what_vllm_itself_does_not_take_is_one_sentence(models):
    _, model = models
    with refused(ll.OptionError, None, problem="temperature"):
        ll.generate(model, "a", temperature=3.0, **OPTIONS)
    assert len(ll.generate(model, "a", **OPTIONS).token_ids) == 10


def test_two_models_in_one_process(models, folder_of):
    """The engine of the one ends where the other's begins, and each has its own answers."""
    ours, theirs = models
    other = ll.load(folder_of("llama"), backend="vllm", dtype="float32", engine_options=ENGINE)
    wanted = [ll.generate(ours, TEXTS[0], **OPTIONS).token_ids]
    wanted += [ll.generate(ll.load(folder_of("llama"), dtype="float32"), TEXTS[0], **OPTIONS).token_ids]
    for _ in range(2):
        assert [ll.generate(one, TEXTS[0], **OPTIONS).token_ids for one in (theirs, other)] == wanted


def test_what_vllm_does_not_do_is_refused_before_an_engine_starts(folder_of, tmp_path):
    model = ll.load(folder_of("llama"), backend="vllm", dtype="float32", engine_options=ENGINE)
    out = {"out": tmp_path / "run", "max_new_tokens": 4}
    with refused(ll.OptionError, "stop_strings", ["B"]):
        ll.generate(model, "a", stop_strings="B", min_new_tokens=3, max_new_tokens=4)
    other = lens_of(ll.load(folder_of("qwen3"), dtype="float32"), tmp_path / "lens.safetensors")
    for options in (
        {"sublayers": True},
        {"mode": "replay"},
        {"lens_precision": "bfloat16"},
        {"lens": other},
        {"lens": "linear:nothing.safetensors"},
    ):
        with refused(ll.OptionError, *next(iter(options.items()))):
            ll.trace(model, TEXTS, **out, **options)
    assert not model.backend.running
    assert not (tmp_path / "run").exists()
