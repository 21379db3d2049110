"""Requests that are answered together, against `generate` of each prompt alone with the same options and seed."""

import math
import random
import threading
import time
from concurrent.futures import CancelledError
from dataclasses import replace

import pytest
import torch

import layerlens as ll
from layerlens.datasets import Prompt
from layerlens.decode import continuous, endings
from layerlens.decode.continuous import Continuous
from layerlens.decode.options import GenerateOptions
from layerlens.models.backend import Connection
from layerlens.models.tiny import tiny_model, tiny_tokenizer
from tests.conftest import needs_smollm2, stateful, tiny
from tests.refusals import refused
from tests.thorough import thorough

# a cache of every kind that rows can join, and families whose rows cannot: a recurrence, a text that is read again
FAMILIES = ["llama", "mistral", "gemma3_text", "gpt_oss", "gpt2", "bloom", "qwen3_5_text", "mamba", "rwkv"]
STRATEGIES = [ll.Valley(window=3), ll.Last(), ll.Valley(window=3, p=0.5), ll.DoLa(per="batch"), ll.SLED()]


def model_of(family):
    return stateful(family) if family in ("mamba", "rwkv") else tiny(family)


def asked(n, strategies=STRATEGIES):
    """Requests of different lengths, strategies and options, the same in each run."""
    draw = random.Random(n)
    for number in range(n):
        text = "".join(draw.choice("abcdefgh xyz") for _ in range(draw.randint(1, 14)))
        options = {"max_new_tokens": draw.randint(1, 14), "seed": number, "temperature": draw.choice([0.0, 0.0, 0.9])}
        options |= draw.choice([{}, {}, {"repetition_penalty": 1.3}, {"min_new_tokens": 1}])
        yield text, draw.choice(strategies), options


def assert_as_alone(found, model, text, strategy, options):
    alone = ll.generate(model, text, strategy=strategy, **options)
    assert (found.token_ids, found.text, found.finish_reason) == (alone.token_ids, alone.text, alone.finish_reason)
    assert found.prompt == alone.prompt
    for column in ("position", "next_token_id", "last_token_id", "selected_layer", "valley_layer"):
        assert found.steps[column].tolist() == alone.steps[column].tolist(), column


def submit(requests, text, strategy=STRATEGIES[0], **options):
    return requests.submit(Prompt("a", text, None), strategy, GenerateOptions(**options))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_answer_is_that_of_the_prompt_alone(family):
    """Fewer rows than requests, which come while others are being answered."""
    model = model_of(family)
    asks = list(asked(16))
    with Continuous(model, batch_size=4) as requests:
        waiting = []
        for text, strategy, options in asks:
            waiting.append(submit(requests, text, strategy, **options))
            time.sleep(0.01)
        found = [one.result(120).generation for one in waiting]
    for one, ask in zip(found, asks, strict=True):
        assert_as_alone(one, model, *ask)


def test_rows_of_dola_share_a_batch(monkeypatch):
    """A layer for the whole batch is, for a prompt alone, a layer for the row."""
    widest = []
    step = continuous._Lane.step
    monkeypatch.setattr(continuous._Lane, "step", lambda lane: widest.append(lane.n_rows) or step(lane))
    model = tiny("llama")
    with Continuous(model, batch_size=6) as requests:
        texts = ["abc", "a", "xyz xyz", "b b", "cde", "abcdefgh"]
        futures = [submit(requests, text, ll.DoLa(), max_new_tokens=8) for text in texts]
        for text, future in zip(texts, futures, strict=True):
            assert_as_alone(future.result(timeout=60).generation, model, text, ll.DoLa(), {"max_new_tokens": 8})
    assert max(widest) == 6


def test_texts_end_at_their_own_ends():
    model = tiny("llama")
    free = ll.generate(model, "abc", max_new_tokens=12)
    pairs = (free.text[place : place + 2] for place in range(len(free.text)))
    options = [
        {"stop_strings": [next(pair for pair in pairs if pair.isascii())]},
        {"eos_token_id": free.token_ids[4]},
        {"max_new_tokens": 2},
        {},
    ]
    with Continuous(model) as requests:
        waiting = [submit(requests, "abc", ll.Last(), **{"max_new_tokens": 12, **one}) for one in options]
        found = [one.result(60).generation for one in waiting]
    assert [one.finish_reason for one in found] == ["stop", "stop", "length", "length"]
    for one, given in zip(found, options, strict=True):
        assert_as_alone(one, model, "abc", ll.Last(), {"max_new_tokens": 12, **given})


def test_rows_join_and_the_batch_is_as_wide_as_its_longest_row(monkeypatch):
    """Prompts longer and shorter than what has been read; padding that all rows have is dropped."""
    from layerlens.decode import continuous

    widths = []

    class Watched(continuous.Forward):
        def step(self, token_ids, n_read=1):
            widths.append((len(token_ids), self._n_seen, int(self._mask[:, : self._n_seen].sum(1).max())))
            return super().step(token_ids, n_read)

    monkeypatch.setattr(continuous, "Forward", Watched)
    model = tiny("gemma3_text")
    with Continuous(model, batch_size=3) as requests:
        long = submit(requests, "a text of more than a few letters, which is long", max_new_tokens=3)
        waiting = [submit(requests, text, max_new_tokens=n) for text, n in (("ab", 40), ("abc", 30), ("x" * 30, 20))]
        found = [one.result(60).generation for one in [long, *waiting]]
    assert [len(one.token_ids) for one in found] == [3, 40, 30, 20]
    assert max(n_rows for n_rows, _, _ in widths) == 3
    after = widths[-1]
    assert after[1] == after[2], "the last row alone has no padding"


def test_log_probabilities_are_those_of_the_logits_that_the_strategy_chose():
    """At a temperature that changes what is drawn, and not what is told."""
    model = tiny("llama")
    options = GenerateOptions(max_new_tokens=5, temperature=1.5)
    with Continuous(model) as requests:
        answer = requests.submit(Prompt("a", "abc", None), ll.Fixed(1), options, n_first=2).result(60)
        plain = submit(requests, "abc", max_new_tokens=2).result(60)
    assert (len(answer.prompt.token_ids), plain.log_probs) == (3, None)
    ids = [*model.tokenizer("abc").input_ids, *answer.generation.token_ids]
    with torch.no_grad():
        states = model.hf.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-2][0]
        wanted = model.hf.lm_head(model.hf.model.norm(states)).double().log_softmax(-1)
    for place, told in enumerate(answer.log_probs):
        of_all = wanted[2 + place]
        first = of_all.topk(2)
        assert [one for one, _ in told] == [ids[3 + place], *first.indices.tolist()]
        assert [one for _, one in told] == pytest.approx(
            [float(of_all[ids[3 + place]]), *first.values.tolist()], abs=1e-5
        )


def test_a_request_that_is_cancelled_leaves_and_others_go_on():
    model = tiny("llama")
    with Continuous(model, batch_size=2) as requests:
        endless = submit(requests, "abc", max_new_tokens=120)
        other = submit(requests, "xyz", max_new_tokens=30)
        waiting = submit(requests, "late", max_new_tokens=5)
        assert endless.cancel()
        assert_as_alone(other.result(60).generation, model, "xyz", STRATEGIES[0], {"max_new_tokens": 30})
        assert_as_alone(waiting.result(60).generation, model, "late", STRATEGIES[0], {"max_new_tokens": 5})
    assert endless.cancelled()


def test_what_does_not_fit_is_refused_at_once_and_others_go_on():
    model = tiny("llama")
    with Continuous(model) as requests:
        with refused(ll.OptionError, "window", 9):
            submit(requests, "abc", ll.Valley(window=9))
        with refused(ll.PromptError):
            submit(requests, "")
        with refused(ll.PromptError, "max_new_tokens", 10**6):
            submit(requests, "abc", max_new_tokens=10**6)
        assert len(submit(requests, "abc", max_new_tokens=3).result(60).generation.token_ids) == 3


def test_logits_that_are_no_numbers_end_one_row():
    broken = ll.load(tiny_model("llama", tie_word_embeddings=False), tokenizer=tiny_tokenizer())
    with torch.no_grad():
        broken.hf.model.embed_tokens.weight[tiny_tokenizer()("y").input_ids[0]] = math.nan
    with Continuous(broken) as requests:
        found = [submit(requests, text, ll.Last(), max_new_tokens=6) for text in ("abc", "xyz", "cba")]
        found = [one.result(60).generation for one in found]
    assert [one.finish_reason for one in found] == ["length", "non_finite", "length"]
    assert (found[1].token_ids, len(found[1].steps)) == ([], 0)


class Broken(ll.Last):
    """A strategy that fails in the middle."""

    is_untouched = False

    def layers(self, n_layers, tied=False):
        return (n_layers,)

    def choose(self, readouts):
        raise ZeroDivisionError("no layer")


def test_an_error_is_everybodys_answer_and_the_next_requests_are_answered():
    model = tiny("llama")
    with Continuous(model) as requests:
        with pytest.raises(ZeroDivisionError):
            submit(requests, "abc", Broken(), max_new_tokens=3).result(60)
        assert len(submit(requests, "abc", max_new_tokens=3).result(60).generation.token_ids) == 3


def test_closing_ends_the_thread_and_answers_nobody():
    model = tiny("llama")
    before = threading.active_count()
    requests = Continuous(model, batch_size=1)
    waiting = [submit(requests, "abc", max_new_tokens=120) for _ in range(3)]
    requests.close()
    assert threading.active_count() == before
    assert waiting[-1].cancelled()
    with pytest.raises(CancelledError):
        waiting[-1].result(1)
    with refused(ll.ModelError):
        submit(requests, "abc", max_new_tokens=2)
    assert len(ll.generate(model, "abc", max_new_tokens=2).token_ids) == 2, "the model is free again"


def test_stop_strings_are_taken_apart_once_for_all_requests(monkeypatch):
    """Making a criterion goes through the whole vocabulary, which would take longer than many a token."""
    made = []
    known = endings.StopStringCriteria
    monkeypatch.setattr(endings, "StopStringCriteria", lambda *given: made.append(given[1]) or known(*given))
    tokenizer = tiny_tokenizer()
    model = ll.load(tiny_model("llama"), tokenizer=tokenizer)
    with Continuous(model, batch_size=4) as requests:
        futures = [
            submit(requests, text, stop_strings=stops, max_new_tokens=3) for text in "abc" for stops in ("x", "y")
        ]
        assert all(future.result(timeout=60) for future in futures)
    assert sorted(made) == [["x"], ["y"]]
    tokenizer.add_tokens(["xyz"])
    endings.ending_criteria(None, "x", tokenizer)
    assert len(made) == 3, "of another vocabulary"


def test_a_model_that_is_elsewhere_is_refused():
    model = tiny("llama")
    with refused(ll.OptionError, "backend", "far"):
        Continuous(replace(model, backend=Connection("far", is_here=False)))


@thorough
def test_smollm2():
    needs_smollm2()
    model = ll.load("smollm2-135m-instruct", dtype="float32")
    texts = ["What is the capital of France?", "Count to five.", "Say hello in Spanish, French and German.", "2+2?"]
    strategies = [ll.Last(), ll.Valley(window=10)]
    asks = [(text, strategy, {"max_new_tokens": 12}) for text in texts for strategy in strategies]
    with Continuous(model, batch_size=4) as requests:
        found = [
            one.result(300).generation for one in [submit(requests, text, kind, **given) for text, kind, given in asks]
        ]
    for one, ask in zip(found, asks, strict=True):
        assert_as_alone(one, model, *ask)


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_prompts_are_read_a_few_at_a_time_where_rows_can_join(monkeypatch, family):
    from layerlens.decode import continuous

    sizes = []

    class Watched(continuous.Forward):
        def prompts(self):
            sizes.append(tuple(self._text.shape))
            return super().prompts()

    monkeypatch.setattr(continuous, "Forward", Watched)
    monkeypatch.setattr(continuous, "_MOST_READ", 24)
    model = tiny(family)
    texts = ["abcdef", "x" * 40, "abcdefgh", "abc", "ab", "a", "abcdefghi", "xyz"]
    with Continuous(model, batch_size=8) as requests:
        waiting = [submit(requests, text, max_new_tokens=12) for text in texts]
        for one, text in zip(waiting, texts, strict=True):
            assert_as_alone(one.result(60).generation, model, text, STRATEGIES[0], {"max_new_tokens": 12})
    assert sum(n for n, _ in sizes) == len(texts)
    few = [n == 1 or n * length <= 24 for n, length in sizes]
    assert all(few) if family == "llama" else not all(few[1:]), "rows of a recurrence wait for all beside them"
