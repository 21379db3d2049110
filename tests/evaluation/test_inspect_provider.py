"""layerlens as inspect's model: answers, counts and reasons are those of `ll.generate` to each sample alone."""

import asyncio
import gc
import math
import subprocess
import sys

import pytest

import layerlens as ll

inspect_ai = pytest.importorskip("inspect_ai", reason="needs the extra eval")

from inspect_ai import Task  # noqa: E402
from inspect_ai import eval as evaluate  # noqa: E402
from inspect_ai._util.error import PrerequisiteError  # noqa: E402
from inspect_ai.dataset import Sample  # noqa: E402
from inspect_ai.model import ChatMessageTool, GenerateConfig, get_model  # noqa: E402
from inspect_ai.scorer import includes  # noqa: E402
from inspect_ai.solver import generate  # noqa: E402

from layerlens.decode.continuous import _Row as Row  # noqa: E402
from layerlens.evaluation.inspect import provider  # noqa: E402

# inspect asks tenacity for what that has renamed, and leaves streams to the garbage collector
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'initial' parameter is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
]

TEXTS = ["abc", "Hello there, you", "x", "a longer one, of some words", "xyz", "to be", "12345", "the end"]


@pytest.fixture(scope="module")
def model(folder):
    return ll.load(folder)


@pytest.fixture
def asked(folder, tmp_path):
    """Runs a task over the texts, and gives its samples in order."""

    def run(texts=TEXTS, model_args=None, **config):
        task = Task(dataset=[Sample(input=text, target="a") for text in texts], solver=generate(), scorer=includes())
        arguments = {"model_path": str(folder), **(model_args or {"strategy": "valley", "window": 3})}
        (log,) = evaluate(
            task, model="layerlens/tiny", model_args=arguments, display="none", log_dir=str(tmp_path), **config
        )
        gc.collect()  # what is left of the streams, while their warnings are ignored
        assert log.status == "success", log.error
        return sorted(log.samples, key=lambda sample: texts.index(sample.input))

    return run


def assert_as_alone(sample, model, strategy, **options):
    alone = ll.generate(model, sample.input, strategy=strategy, **options)
    assert sample.output.completion == alone.text
    assert sample.output.usage.output_tokens == len(alone.token_ids)
    assert sample.output.usage.input_tokens == len(model.tokenizer(sample.input).input_ids)
    assert sample.output.stop_reason == {"stop": "stop", "length": "max_tokens"}[alone.finish_reason]
    return alone


@pytest.mark.parametrize("max_connections", [1, 5])
def test_answers_and_counts(asked, model, max_connections):
    for sample in asked(max_tokens=12, max_connections=max_connections):
        alone = assert_as_alone(sample, model, ll.Valley(window=3), max_new_tokens=12)
        (measures,) = sample.output.metadata["measures"]
        steps = alone.steps
        assert measures["tokens"] == 12
        assert measures["valley_rate"] == pytest.approx((steps["valley_layer"] < 4).mean())
        assert measures["substituted"] == pytest.approx((steps["next_token_id"] != steps["last_token_id"]).mean())
        assert measures["mean_depth"] == pytest.approx(steps["selected_layer"].mean() / 4)
        assert measures["final_entropy"] == pytest.approx(steps["entropy"].str[-1].mean(), abs=1e-4)
        assert sample.output.metadata["strategy"] == {
            **{"name": "valley", "window": 3, "p": 1.0, "shift": 0, "criterion": "shannon"},
            **{"scan": "auto", "entropy_floor": 0.0},
        }


def test_a_request_has_a_strategy_of_its_own(asked, model):
    for own, strategy in (
        ({"strategy": "last"}, ll.Last()),
        ({"window": 2}, ll.Valley(window=2)),
        ({"strategy": "dola", "candidates": [1, 2], "per": "row"}, ll.DoLa(candidates=(1, 2), per="row")),
    ):
        for sample in asked(TEXTS[:3], max_tokens=6, extra_body={"layerlens": own}):
            assert_as_alone(sample, model, strategy, max_new_tokens=6)


def test_sampling_is_that_of_the_seed_and_choices_differ(asked, model):
    drawn = {"temperature": 0.9, "top_p": 0.95}
    for sample in asked(max_tokens=6, num_choices=2, seed=7, **drawn):
        options = {"max_new_tokens": 6, "seed": sample.output.metadata["seeds"][0], **drawn}
        alone = ll.generate(model, sample.input, strategy=ll.Valley(window=3), **options)
        first, second = (choice.message.text for choice in sample.output.choices)
        assert first == alone.text
        assert first != second
        assert sample.output.usage.output_tokens == 12
    again, more = (asked(TEXTS[:1], max_tokens=6, temperature=0.9)[0].output for _ in range(2))
    assert again.metadata["seeds"] != more.metadata["seeds"]


def test_items_and_epochs_draw_independently_and_arms_alike(asked):
    """With one seed for all, each item would draw the same numbers, and each epoch would be the same answer."""
    drawn = {"max_tokens": 8, "temperature": 0.9, "seed": 7, "epochs": 2}
    seeds, texts = {}, {}
    for strategy in ("valley", "last"):
        own = {"layerlens": {"strategy": strategy}}
        for sample in asked(["abc", "abc", "abd"], {"strategy": "last"}, extra_body=own, **drawn):
            key = (str(sample.id), sample.epoch)
            texts[(strategy, *key)] = sample.output.completion
            assert seeds.setdefault(key, sample.output.metadata["seeds"]) == sample.output.metadata["seeds"]
    assert len({tuple(one) for one in seeds.values()}) == 6
    assert len({text for (strategy, item, _), text in texts.items() if strategy == "last" and item in "12"}) == 4
    (again,) = asked(["abc"], {"strategy": "last"}, max_tokens=8, temperature=0.9, seed=7)
    assert again.output.completion == texts["last", "1", 1]
    (other,) = asked(["abc"], {"strategy": "last"}, max_tokens=8, temperature=0.9, seed=8)
    assert other.output.completion != texts["last", "1", 1]


def test_stop_strings_are_cut_off(asked, model):
    free = ll.generate(model, "abc", strategy=ll.Valley(window=3), max_new_tokens=16).text
    pairs = (free[place : place + 2] for place in range(2, len(free)))
    stop = next(pair for pair in pairs if pair.isascii())
    (sample,) = asked(["abc"], max_tokens=16, stop_seqs=[stop])
    assert sample.output.completion == free[: free.index(stop)]
    assert sample.output.stop_reason == "stop"


def test_log_probabilities(asked, model):
    (sample,) = asked(["abc"], {"strategy": "last"}, max_tokens=4, logprobs=True, top_logprobs=2)
    told = sample.output.choices[0].logprobs.content
    assert len(told) == 4
    for one in told:  # greedy: the emitted token is the most probable one
        assert one.logprob == one.top_logprobs[0].logprob >= one.top_logprobs[1].logprob


def test_an_item_that_is_too_long_is_an_answer_and_one_that_nearly_is_ends_with_the_context(asked, model):
    texts = ["abc", "x" * 200, "y" * 120]
    short, over, nearly = asked(texts, max_tokens=50)
    assert_as_alone(short, model, ll.Valley(window=3), max_new_tokens=50)
    assert (over.output.stop_reason, over.output.completion) == ("model_length", "")
    assert nearly.output.stop_reason == "model_length"
    assert nearly.output.usage.output_tokens == model.context_length - 120


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"strategy": "vally"}, "did you mean valley"),
        ({"strategy": "valley", "window": 9}, "window"),
        ({"strategy": "valley", "windw": 3}, "did you mean window"),
        ({"batch_sise": 3}, "did you mean batch_size"),
        ({"model_path": "no/such/folder"}, "no/such/folder"),
        ({"lens": "linear:nothing.safetensors"}, "nothing.safetensors"),
        ({"trace": "/proc/x"}, "trace /proc/x cannot be written"),
        ({"trace": 3}, "trace 3"),
        ({"chat_template": "/nope"}, "chat_template '/nope'"),
    ],
)
def test_what_cannot_be_is_one_sentence(arguments, said, folder):
    with pytest.raises(PrerequisiteError, match=said) as caught:
        get_model("layerlens/tiny", **{"model_path": str(folder), **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"extra_body": {"layerlens": {"strategy": "vally"}}}, "did you mean valley"),
        ({"extra_body": {"layerlens": {"p": 2}}}, "p 2"),
        ({"extra_body": {"layerlens": 3}}, "extra_body"),
    ],
)
def test_what_a_request_does_not_get_is_said(config, said, asked):
    with pytest.raises((PrerequisiteError, AssertionError), match=said):
        asked(TEXTS[:1], max_tokens=3, **config)


@pytest.fixture
def alone(folder):
    """Asks a model of inspect, whose requests need no task."""

    def ask(texts, arguments=None, **config):
        async def all_at_once():
            model = get_model("layerlens/tiny", model_path=str(folder), **(arguments or {}), memoize=False)
            calls = (model.generate(text, config=GenerateConfig(**{"max_tokens": 3, **one})) for text, one in texts)
            try:
                return await asyncio.gather(*calls, return_exceptions=True)
            finally:
                model.api.close()

        texts = [(text, config) if isinstance(text, str) else text for text in texts]
        answers = asyncio.run(all_at_once())
        gc.collect()  # as above
        return answers

    return ask


def test_a_request_that_cannot_be_leaves_the_others_alone(alone):
    wrong = [
        {"logprobs": True, "top_logprobs": 10**6},
        {"logprobs": True, "top_logprobs": -1},
        {"num_choices": 0},
        {"num_choices": -1},
        {"max_tokens": 0},
        {"extra_body": {"layerlens": {"lens": "logit"}}},
    ]
    good, *refused, also_good = alone([("abc", {}), *(("abc", one) for one in wrong), ("abc", {})])
    assert good.completion == also_good.completion != ""
    names = [
        "top_logprobs 1000000",
        "top_logprobs -1",
        "num_choices 0",
        "num_choices -1",
        "max_tokens 0",
        "lens 'logit'",
    ]
    for error, name in zip(refused, names, strict=True):
        assert isinstance(error, PrerequisiteError), error
        assert name in str(error)


def test_an_error_of_one_row_is_that_rows_alone(alone, monkeypatch):
    right = Row.draw

    def broken(self, logits, decisions):
        if self.prompt_ids[:1] == self.prompt_ids[1:2]:
            raise RuntimeError("of this row")
        return right(self, logits, decisions)

    monkeypatch.setattr(Row, "draw", broken)
    good, bad, other = alone(["abc", "aab", "xyz"])
    assert isinstance(bad, RuntimeError)
    assert good.completion
    assert other.completion


def test_the_cache_keeps_strategies_apart(alone, tmp_path, monkeypatch):
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path))
    found = [
        alone(["abc"], {"strategy": name}, cache=True, max_tokens=12)[0]
        for name in ("last", "last-1", "last", "last-1")
    ]
    names = [(one.metadata["strategy"]["name"], one.metadata["strategy"].get("offset")) for one in found]
    assert names == [("last", None), ("fixed", 1)] * 2
    assert found[0].completion != found[1].completion
    assert [one.time for one in found[:2]] == [one.time for one in found[2:]]  # the second two were kept


def test_tokens_that_are_ruled_out_and_parts_of_characters(alone):
    (answer,) = alone(["abc"], {"strategy": "dola-low"}, logprobs=True, top_logprobs=300)
    for one in answer.choices[0].logprobs.content:
        assert 0 < len(one.top_logprobs) < 300
        assert all(math.isfinite(top.logprob) for top in one.top_logprobs)
        assert all((top.bytes is None) == ("\ufffd" in top.token) for top in one.top_logprobs)


def test_a_conversation_that_holds_nothing_or_a_tools_answer(alone):
    empty, tool = alone([([], {}), ([ChatMessageTool(content="x", tool_call_id="1")], {})])
    assert (empty.completion, empty.stop_reason) == ("", "unknown")
    assert "no messages" in str(empty.error)
    assert "tool returned" in str(tool)


def test_a_chat_is_written_by_the_models_template():
    from tests.conftest import needs_smollm2

    needs_smollm2()
    model = get_model("layerlens/smollm2-135m-instruct", dtype="float32", config=GenerateConfig(max_tokens=8))
    import asyncio

    with model:
        output = asyncio.run(model.generate("What is the capital of France?"))
    own = ll.load("smollm2-135m-instruct", dtype="float32")
    assert output.completion == ll.generate(own, "What is the capital of France?", max_new_tokens=8).text


def test_the_model_is_loaded_once(asked, monkeypatch):
    """inspect looks for the length of the context of the model whose usage it shows."""
    loaded = []
    load = provider.load
    monkeypatch.setattr(provider, "load", lambda *given, **options: loaded.append(given) or load(*given, **options))
    asked(max_tokens=3)
    assert len(loaded) == 1


def test_other_commands_of_inspect_do_not_import_torch():
    program = "import sys, layerlens.evaluation.inspect; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_answers_are_traced_when_the_task_has_ended(asked, model, tmp_path):
    traces = tmp_path / "traces"
    arguments = {"strategy": "valley", "window": 3, "trace": str(traces)}
    samples = asked(TEXTS[:3], {"model_path": str(model.source), **arguments}, max_tokens=6, epochs=2)
    (place,) = traces.iterdir()
    traced = ll.open_run(place)
    assert traced.is_complete
    assert sorted(traced.prompts["prompt_id"]) == ["1", "1#2", "2", "2#2", "3", "3#2"]
    assert traced.manifest["strategy"]["window"] == 3
    own = ll.trace(
        model, [samples[0].input], out=tmp_path / "own", strategy=ll.Valley(window=3), max_new_tokens=6, progress=False
    )
    rows = (traced.positions["prompt_id"] == str(samples[0].id)).to_numpy()
    assert traced.positions[rows]["next_token_id"].tolist() == own.positions["next_token_id"].tolist()
    assert traced.layers("entropy")[rows] == pytest.approx(own.layers("entropy"), rel=1e-4, abs=1e-5)


def test_thinking_is_told_apart_and_is_not_scored(folder, tmp_path, monkeypatch):
    """The template opens the thinking, and what follows never closes it: nothing is left to score."""
    import shutil

    place = tmp_path / "thinker"
    shutil.copytree(folder, place)
    (place / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}<think>\n")
    task = Task(dataset=[Sample(input="abc", target="")], solver=generate(), scorer=includes())
    (log,) = evaluate(
        task,
        model="layerlens/tiny",
        model_args={"model_path": str(place)},
        display="none",
        log_dir=str(tmp_path),
        max_tokens=6,
    )
    gc.collect()
    (sample,) = log.samples
    assert sample.output.completion == ""
    (thinking, _) = sample.output.choices[0].message.content
    alone = ll.generate(ll.load(place), "abc", max_new_tokens=6)
    assert (thinking.type, thinking.reasoning) == ("reasoning", alone.text.strip())
    assert sample.output.usage.output_tokens == 6
