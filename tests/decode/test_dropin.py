"""Strategies inside transformers' own `generate`, on a tiny model of every family."""

import pytest
import torch
from transformers import GenerationConfig, MaxTimeCriteria, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

import layerlens as ll
from layerlens.models import tiny_names
from tests.conftest import tiny
from tests.decode import plain
from tests.invariants.laws import hook_count
from tests.refusals import refused
from tests.thorough import some

PROMPTS = [[5, 9, 20, 7, 44, 8], [7, 13, 99]]
IDS = torch.tensor([PROMPTS[0], [0, 0, 0, *PROMPTS[1]]])
MASK = torch.tensor([[1] * 6, [0, 0, 0, 1, 1, 1]])
GREEDY = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def generated(model, **options):
    options = {**GREEDY, "max_new_tokens": 10} | options
    return model.hf.generate(input_ids=IDS, attention_mask=MASK, **options)


def tokens_of(log):
    return [rows["next_token_id"].tolist() for _, rows in log.steps.groupby("row")]


OFF = [ll.Last(), ll.Valley(window=1), ll.Valley(p=0.0), ll.Fixed(0), ll.Fixed(2, p=0.0)]


@pytest.mark.parametrize("family", some(tiny_names(), 12))
def test_switched_off_it_is_the_model_bit_for_bit(family):
    """Law 6: the logits are equal, not close; and so the tokens are transformers' greedy ones."""
    model = tiny(family)
    told = {"return_dict_in_generate": True, "output_logits": True}
    own = generated(model, **told)
    for strategy in OFF:
        with ll.decoding(model, strategy) as log:
            ours = generated(model, **told)
        assert torch.equal(ours.sequences, own.sequences)
        assert all(torch.equal(one, other) for one, other in zip(ours.logits, own.logits, strict=True))
        assert (log.steps["selected_layer"] == model.n_layers).all()
        assert (log.steps["next_token_id"] == log.steps["last_token_id"]).all()
        assert (log.steps["projections"] == 1).all()


@pytest.mark.parametrize("family", some(tiny_names(), 12))
def test_it_chooses_what_a_plain_loop_chooses(family):
    """Law 7 in the whole decoding loop: tokens and layers of a padded batch, from whole float64 logits."""
    model = tiny(family)
    tokens, layers = plain.decode(model.hf, PROMPTS, 12, window=3)
    for scan in ("batched", "lazy"):
        with ll.decoding(model, ll.Valley(window=3, scan=scan)) as log:
            generated(model, max_new_tokens=12)
        assert tokens_of(log) == tokens
        assert [rows["selected_layer"].tolist() for _, rows in log.steps.groupby("row")] == layers
        assert (log.steps["valley_layer"] == log.steps["selected_layer"]).all()
    assert len({layer for row in layers for layer in row}) > 1, "a walk that never moves would pass"


@pytest.mark.parametrize("family", tiny_names())
def test_leaving_restores_the_model(family):
    model = tiny(family)
    before = generated(model)
    with pytest.raises(ZeroDivisionError), ll.decoding(model, ll.Valley(window=3)):
        generated(model, max_new_tokens=1 // 0)
    assert hook_count(model.hf) == 0
    assert "generate" not in vars(model.hf)
    assert torch.equal(generated(model), before)


def test_an_error_inside_generate_restores_the_model_too(tiny_llama):
    class Failing(StoppingCriteria):
        def __call__(self, input_ids, scores, **_):
            raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"), ll.decoding(tiny_llama, ll.Valley(window=3)) as log:
        generated(tiny_llama, stopping_criteria=StoppingCriteriaList([Failing()]))
    assert len(log) == 0
    assert hook_count(tiny_llama.hf) == 0


@pytest.mark.parametrize("cache", ["static", "dynamic"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_5_text"])
def test_any_cache_gives_the_same(family, cache):
    model = tiny(family)
    with ll.decoding(model, ll.Valley(window=3)) as log:
        generated(model)
    with ll.decoding(model, ll.Valley(window=3)) as other:
        generated(model, cache_implementation=cache)
    assert tokens_of(other) == tokens_of(log)


def test_sampling_draws_from_the_valley(tiny_llama):
    """The sampler's seed is the user's; with a top-k of 1 sampling is greedy over the valley's logits."""
    sampling = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 40, "max_new_tokens": 30}
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        with ll.decoding(tiny_llama, ll.Valley(window=3)):
            texts.append(generated(tiny_llama, **sampling).tolist())
    assert texts[0] == texts[1] != texts[2]
    with ll.decoding(tiny_llama, ll.Valley(window=3)):
        greedy = generated(tiny_llama)
        assert torch.equal(generated(tiny_llama, do_sample=True, top_k=1), greedy)


def test_p_draws_for_each_token(tiny_llama):
    """About half the tokens of p = 0.5 take the valley; the seed decides which; the valley is recorded for all."""
    with ll.decoding(tiny_llama, ll.Valley(window=4, p=0.5), seed=1) as log:
        generated(tiny_llama, max_new_tokens=100)
        generated(tiny_llama, max_new_tokens=100)
    steps = log.steps
    moved = steps[steps["valley_layer"] < 4]
    acted = (moved["selected_layer"] < 4).mean()
    assert len(moved) > 100
    assert abs(acted - 0.5) < 4 * 0.5 / len(moved) ** 0.5
    acting = moved[moved["selected_layer"] < 4]
    assert (acting["selected_layer"] == acting["valley_layer"]).all()
    with ll.decoding(tiny_llama, ll.Valley(window=4, p=0.5), seed=1) as again:
        generated(tiny_llama, max_new_tokens=100)
    assert tokens_of(again) == [rows["next_token_id"].tolist() for _, rows in steps[steps.call == 0].groupby("row")]


def test_the_log_ends_where_a_row_ends(tiny_llama):
    """An end token, a stop string, a criterion of the user's: what a row emits afterwards is padding."""
    with ll.decoding(tiny_llama, ll.Valley(window=3)) as log:
        generated(tiny_llama, max_new_tokens=12)
    free = tokens_of(log)
    end = free[1][3]
    assert end not in free[1][:3]
    lengths = [next((i + 1 for i, token in enumerate(row) if token == end), 12) for row in free]

    class EndsRow(StoppingCriteria):
        def __call__(self, input_ids, scores, **_):
            return input_ids[:, -1] == end

    for options in ({"eos_token_id": [end]}, {"stopping_criteria": StoppingCriteriaList([EndsRow()])}):
        with ll.decoding(tiny_llama, ll.Valley(window=3)) as log:
            generated(tiny_llama, max_new_tokens=12, **options)
        assert tokens_of(log) == [row[:length] for row, length in zip(free, lengths, strict=True)]
        assert [rows["position"].tolist() for _, rows in log.steps.groupby("row")] == [
            list(range(5, 5 + lengths[0])),
            list(range(2, 2 + lengths[1])),
        ]


def test_stop_strings_end_rows(tiny_llama):
    with ll.decoding(tiny_llama, ll.Valley(window=3)) as log:
        generated(tiny_llama, max_new_tokens=12)
    free = tokens_of(log)
    stop = next(
        text
        for text in map(tiny_llama.tokenizer.decode, free[0][2:])
        if len(text) == 1 and text.isascii() and text.isprintable()
    )
    with ll.decoding(tiny_llama, ll.Valley(window=3)) as log:
        out = generated(tiny_llama, max_new_tokens=12, stop_strings=[stop], tokenizer=tiny_llama.tokenizer)
    for row, tokens in enumerate(tokens_of(log)):
        assert tokens == free[row][: len(tokens)]
        assert len(tokens) == 12 or stop in tiny_llama.tokenizer.decode(tokens)
        assert stop not in tiny_llama.tokenizer.decode(tokens[:-1])
    assert out.shape[1] - 6 == max(map(len, tokens_of(log)))


def test_streamers_get_the_strategys_tokens(tiny_llama):
    class Kept(BaseStreamer):
        def __init__(self):
            self.seen = []

        def put(self, value):
            self.seen.extend(value.flatten().tolist())

        def end(self):
            pass

    streamer = Kept()
    with ll.decoding(tiny_llama, ll.Valley(window=3)) as log:
        tiny_llama.hf.generate(input_ids=IDS[:1], max_new_tokens=6, streamer=streamer, **GREEDY)
    assert streamer.seen == PROMPTS[0] + tokens_of(log)[0]


def test_several_calls_returned_sequences_and_inputs_by_position(tiny_llama):
    with ll.decoding(tiny_llama, ll.Valley(window=3)) as log:
        tiny_llama.hf.generate(IDS[:1], GenerationConfig(max_new_tokens=4, **GREEDY))
        torch.manual_seed(0)
        tiny_llama.hf.generate(
            inputs=IDS, attention_mask=MASK, max_new_tokens=3, do_sample=True, num_return_sequences=2, pad_token_id=0
        )
    assert log.steps.groupby(["call", "row"], sort=False)["position"].first().tolist() == [5, 5, 5, 2, 2]
    assert log.steps.groupby("call").size().tolist() == [4, 12]
    assert "16 tokens in 2 calls" in repr(log)


def test_embeddings_as_input_and_a_prompt_without_mask(tiny_llama):
    embedded = tiny_llama.hf.get_input_embeddings()(IDS[:1])
    with ll.decoding(tiny_llama, ll.Valley(window=3)) as log:
        tiny_llama.hf.generate(input_ids=IDS[:1], max_new_tokens=4, **GREEDY)
        tiny_llama.hf.generate(inputs_embeds=embedded, max_new_tokens=4, **GREEDY)
    first, second = (rows.drop(columns="call").astype(str) for _, rows in log.steps.groupby("call"))
    assert first.to_numpy().tolist() == second.to_numpy().tolist()


def test_without_cache_and_in_chunks(tiny_llama):
    with ll.decoding(tiny_llama, ll.Valley(window=3)) as log:
        generated(tiny_llama)
        generated(tiny_llama, use_cache=False)
        generated(tiny_llama, prefill_chunk_size=2)
    texts = [
        [rows["next_token_id"].tolist() for _, rows in call.groupby("row")] for _, call in log.steps.groupby("call")
    ]
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("how", some(["forward", "compile", "static cache"], 1))
def test_a_compiled_model_runs_the_strategy(how):
    """Compiled before: inside, the compiled code must see our hooks; outside, it must not."""
    from transformers import CompileConfig

    model = tiny("llama", num_hidden_layers=2)
    options = {"max_new_tokens": 4}
    with ll.decoding(model, ll.Valley(window=2)) as log:
        valley = generated(model, **options)
    last = generated(model, **options)
    assert not torch.equal(valley, last)
    try:
        if how == "forward":
            model.hf.forward = torch.compile(model.hf.forward, backend="eager", dynamic=True)
        elif how == "compile":
            model.hf.compile(backend="eager", dynamic=True)
        else:
            config = CompileConfig(backend="eager", mode=None)
            config._compile_all_devices = True
            options |= {"cache_implementation": "static", "compile_config": config}
        assert torch.equal(generated(model, **options), last)
        with ll.decoding(model, ll.Valley(window=2)) as compiled:
            assert torch.equal(generated(model, **options), valley)
        assert torch.equal(generated(model, **options), last)
        assert tokens_of(compiled) == tokens_of(log)
    finally:
        vars(model.hf).pop("forward", None)
        vars(model.hf).pop("_compiled_call", None)
        model.hf._compiled_call_impl = None
        torch.compiler.reset()


@pytest.mark.parametrize(
    ("options", "option", "given"),
    [
        ({"num_beams": 2}, None, "beam_search"),
        ({"num_beams": 2, "do_sample": True}, None, "beam_sample"),
        ({"prompt_lookup_num_tokens": 2}, None, "assisted_generation"),
        ({"penalty_alpha": 0.6, "top_k": 4}, None, "contrastive_search"),
        ({"guidance_scale": 2.0}, "guidance_scale", 2.0),
        ({"custom_generate": "somewhere/else"}, "custom_generate", "somewhere/else"),
        ({"generation_config": GenerationConfig(num_beams=3)}, None, "beam_search"),
    ],
)
def test_other_searches_are_refused(tiny_llama, options, option, given):
    with ll.decoding(tiny_llama, ll.Valley(window=3)) as log, refused(ll.OptionError, option, given):
        tiny_llama.hf.generate(input_ids=IDS[:1], max_new_tokens=3, **options)
    assert len(log) == 0


def test_an_assistant_is_refused(tiny_llama):
    with ll.decoding(tiny_llama, ll.Last()), refused(ll.OptionError, given="assisted_generation"):
        tiny_llama.hf.generate(input_ids=IDS[:1], max_new_tokens=3, assistant_model=tiny("llama", seed=1).hf)


def test_only_generate_decodes_from_the_strategy(tiny_llama):
    """Other passes inside the context, and loops of our own, are what they are outside."""
    own = tiny_llama.hf(IDS, labels=IDS)
    alone = ll.generate(tiny_llama, "Hello", max_new_tokens=8).token_ids
    with ll.decoding(tiny_llama, ll.Valley(window=4)) as log:
        inside = tiny_llama.hf(IDS, labels=IDS)
        assert ll.generate(tiny_llama, "Hello", max_new_tokens=8).token_ids == alone
    assert torch.equal(inside.logits, own.logits)
    assert torch.equal(inside.loss, own.loss)
    assert len(log) == 0


def test_a_text_from_nothing(tiny_llama):
    with ll.decoding(tiny_llama, ll.Valley(window=3)) as log:
        out = tiny_llama.hf.generate(max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert log.steps["position"].tolist() == [0, 1, 2, 3]
    assert out[0, 1:].tolist() == tokens_of(log)[0]


@pytest.mark.parametrize(
    ("opened", "option", "given"),
    [
        (lambda: ll.decoding(tiny("llama").hf, ll.Valley()), "model", "LlamaForCausalLM"),
        (lambda: ll.decoding(tiny("llama"), "vally"), "strategy", "vally"),
        (lambda: ll.decoding(tiny("llama"), ll.Last(), seed=-1), "seed", -1),
    ],
)
def test_wrong_arguments_are_one_sentence(opened, option, given):
    with refused(ll.OptionError, option, given), opened():
        pass


@pytest.mark.parametrize(
    ("layers", "change", "given", "advice"),
    [
        ((4, 5), {}, (4, 5), "0 to 4"),
        ((-1, 4), {}, (-1, 4), "0 to 4"),
        (None, {}, None, "0 to 4"),
        ((3,), {}, 4, "layers"),
        ((4,), {"logits": torch.zeros(2, 9)}, (2, 9), "(2, 307)"),
        ((4,), {"selected_layer": torch.tensor([4, 9])}, None, "1..4"),
        ((4,), {"selected_layer": 4}, "int", "(2,)"),
        ((4,), None, "NoneType", "Choice"),
    ],
)
def test_strategies_of_other_people_are_checked(tiny_llama, layers, change, given, advice):
    class Odd(ll.Strategy):
        def layers(self, n_layers, tied=False):
            return layers

        def choose(self, readouts):
            logits = readouts.logits([4])[:, 0]
            top = logits.argmax(1)
            return None if change is None else ll.Choice(logits, torch.full_like(top, 4), top)._replace(**change)

    with refused(ll.OptionError, "strategy", given, advice=advice), ll.decoding(tiny_llama, Odd()):
        generated(tiny_llama)
    assert hook_count(tiny_llama.hf) == 0


def test_a_strategy_that_needs_the_last_layer_alone_is_asked(tiny_llama):
    class Worst(ll.Strategy):
        def layers(self, n_layers, tied=False):
            return (n_layers,)

        def choose(self, readouts):
            logits = readouts.logits([4])[:, 0]
            return ll.Choice(-logits, torch.full((len(logits),), 4), logits.argmax(1))

    with ll.decoding(tiny_llama, Worst()) as log:
        out = generated(tiny_llama, max_new_tokens=1)
    logits = tiny_llama.hf(IDS, attention_mask=MASK).logits[:, -1]
    assert out[:, -1].tolist() == logits.argmin(1).tolist()
    assert log.steps["last_token_id"].tolist() == logits.argmax(1).tolist()


def test_contexts_do_not_nest(tiny_llama):
    with (
        ll.decoding(tiny_llama, ll.Last()),
        pytest.raises(ll.OptionError, match="already"),
        ll.decoding(tiny_llama, ll.Last()),
    ):
        pass
    assert hook_count(tiny_llama.hf) == 0


def test_a_strategy_that_does_not_fit_is_refused_at_once(tiny_llama):
    for strategy in (ll.Valley(window=9), ll.Fixed(4), ll.DoLa(candidates=(4,))):
        with pytest.raises(ll.OptionError, match="4 layers"), ll.decoding(tiny_llama, strategy):
            pass
    assert hook_count(tiny_llama.hf) == 0


def test_nan_states_leave_the_last_layer(tiny_llama, monkeypatch):
    """A layer whose entropy is NaN never wins, wherever it stands in the window."""
    from layerlens.decode import criteria

    right = criteria.shannon
    for broken in (0, 1, 2):

        def with_nan(logits, broken=broken):
            values = right(logits)
            values[broken::3] = torch.nan
            return values

        monkeypatch.setitem(criteria.CRITERIA, "shannon", with_nan)
        with ll.decoding(tiny_llama, ll.Valley(window=3, scan="batched")) as log:
            generated(tiny_llama)
        selected = log.steps["selected_layer"]
        assert (selected == 4).all() if broken > 0 else (selected > 2).all()


def test_maximal_time_still_stops(tiny_llama):
    with ll.decoding(tiny_llama, ll.Last()) as log:
        generated(tiny_llama, max_new_tokens=90, stopping_criteria=StoppingCriteriaList([MaxTimeCriteria(0.0)]))
    assert len(log) == 2


def test_batches_too_large_for_one_product_are_read_in_parts(monkeypatch):
    from layerlens.decode import chooser

    model = tiny("llama")
    with ll.decoding(model, ll.Valley(window=3, p=0.5), seed=3) as log:
        generated(model)
    monkeypatch.setattr(chooser, "_STATES_AT_ONCE", 3)
    with ll.decoding(model, ll.Valley(window=3, p=0.5), seed=3) as parts:
        generated(model)
    assert tokens_of(parts) == tokens_of(log)
    assert (parts.steps["projections"] == log.steps["projections"]).all()
