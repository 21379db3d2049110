"""What a trace writes: rows, flags, finish reasons, options, and what happens to prompts that break."""

import json
import math

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel

import layerlens as ll
from layerlens.decode import batch
from layerlens.models import tiny_model, tiny_tokenizer
from layerlens.records import PROMPTS, TOKENS, all_token_columns
from layerlens.tracing import meter
from layerlens.tracing.token_texts import token_texts
from tests import reference
from tests.conftest import STATEFUL, stateful, tiny
from tests.invariants.laws import EVERYTHING, FLOATS, fresh, runs_agree, words_stand_where_they_do
from tests.lens.test_criterion import valley
from tests.refusals import refused

TEXTS = ["Hello", "What is it?", "x"]


def test_every_declared_column_is_written_and_no_other(tiny_llama, run_of):
    run = run_of(tiny_llama, TEXTS, max_new_tokens=4)
    assert list(run.tokens.columns) == [column.name for column in TOKENS]
    assert list(run.prompts.columns) == [column.name for column in PROMPTS]
    assert len(run.tokens) == 12
    for column in TOKENS:
        if column.per_layer:
            assert run.tokens[column.name].map(len).eq(run.n_layers).all()


def test_rows_of_a_generation(tiny_llama, run_of):
    """Positions, tokens and flags, against transformers' own generate and the tokenizer."""
    run = run_of(tiny_llama, TEXTS, max_new_tokens=5, positions="all", batch_size=2)
    for index, text in enumerate(TEXTS):
        ids = tiny_llama.tokenizer(text).input_ids
        whole = tiny_llama.hf.generate(input_ids=torch.tensor([ids]), max_new_tokens=5, do_sample=False)[0].tolist()
        rows = run.positions[run.positions["prompt_id"] == str(index)]
        assert rows["position"].tolist() == list(range(len(whole) - 1))
        assert rows["token_id"].tolist() == whole[:-1]
        assert rows["next_token_id"].tolist() == whole[1:]
        assert rows["is_generated"].tolist() == [False] * (len(ids) - 1) + [True] * 5
    prompts = run.prompts
    assert prompts["prompt"].tolist() == TEXTS
    assert prompts["n_prompt_tokens"].tolist() == [len(text) for text in TEXTS]
    assert prompts["n_generated_tokens"].tolist() == [5, 5, 5]
    assert (prompts["seconds"] > 0).all()


@pytest.mark.parametrize("positions", ["generated", "all"])
@pytest.mark.parametrize("rows_waiting", [1, 3, 512])
def test_what_is_asked_for_is_further_columns_however_states_wait(run_of, monkeypatch, rows_waiting, positions):
    """Against one pass over the emitted text whose whole logits are compared in float64."""
    monkeypatch.setattr(meter, "_MOST_ROWS_WAITING", rows_waiting)
    monkeypatch.setattr(meter, "_LEAST_ROWS_WAITING", 1)
    model = fresh("llama")
    run = run_of(model, TEXTS, max_new_tokens=7, batch_size=2, positions=positions, confidence=True, **EVERYTHING)
    assert list(run.tokens.columns) == [column.name for column in all_token_columns()]
    blocks, tail = reference.structure(model.hf)
    for text, (_, rows) in zip(TEXTS, run.positions.groupby("prompt_id", sort=False), strict=True):
        emitted = rows.loc[rows["is_generated"], "next_token_id"]
        ids = [*model.tokenizer(text).input_ids, *emitted]
        seen = reference.watch(model.hf, blocks, torch.tensor([ids]))
        readout = reference.own_readout(model.hf, tail)
        expected = reference.numbers("llama", model.hf, blocks, seen, 0, rows["position"], readout)
        for name in ("kl_last_to_layer", "js_from_last", "half_entropy"):
            np.testing.assert_allclose(run.layers(name)[rows.index], expected[name], atol=5e-5)
        words_stand_where_they_do(run, rows.index, rows["next_token_id"], expected["log_probs"], 5e-5)
    plain = run_of(model, TEXTS, max_new_tokens=7, batch_size=2, positions=positions)
    assert list(plain.tokens.columns) == [column.name for column in TOKENS]
    runs_agree(plain, run, 0)


@pytest.mark.parametrize("positions", ["generated", "all"])
def test_the_host_may_look_late_at_what_ended(run_of, monkeypatch, positions):
    """As on an accelerator, which does a block of steps before anyone looks: what follows an end is left out."""
    model = fresh("llama")
    free = run_of(model, TEXTS, max_new_tokens=12)
    emitted = [rows["next_token_id"].tolist() for _, rows in free.positions.groupby("prompt_id")]
    model.hf.generation_config.eos_token_id = [emitted[0][2], emitted[1][6]]
    options = {"max_new_tokens": 12, "batch_size": 3, "positions": positions}
    expected = run_of(model, TEXTS, **options)
    assert expected.prompts["n_generated_tokens"].nunique() > 1
    for size in (4, 5, 32):
        monkeypatch.setitem(batch._STEPS_PER_BLOCK, "cpu", size)
        runs_agree(run_of(model, TEXTS, **options), expected, 1e-5)


@pytest.mark.parametrize("family", STATEFUL)
def test_families_that_carry_on_in_other_ways(family, run_of):
    model = stateful(family)
    texts = TEXTS[:2]  # transformers' RecurrentGemma begins a prompt of one token with the states of the text before
    generated, replayed = (run_of(model, texts, max_new_tokens=6, mode=mode) for mode in ("generate", "replay"))
    runs_agree(generated, replayed, 1e-4)
    for text, (_, rows) in zip(texts, generated.positions.groupby("prompt_id", sort=False), strict=True):
        ids = torch.tensor([model.tokenizer(text).input_ids])
        theirs = model.hf.generate(input_ids=ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        assert rows["next_token_id"].tolist() == theirs.tolist()


def test_a_run_says_what_its_ids_say(tiny_llama, smollm2, run_of):
    """Every id that occurs and that the tokenizer knows has its text; put together they are what was generated."""
    run = run_of(tiny_llama, TEXTS, max_new_tokens=5)
    occurring = (
        set(run.layers("top_token_id").ravel()) | set(run.positions["token_id"]) | set(run.positions["next_token_id"])
    )
    assert set(run.words.index) == {index for index in occurring if index < len(tiny_llama.tokenizer)} < occurring
    run = run_of(smollm2, ["The sky is", "Ça va? 🙂"], max_new_tokens=6, chat_template=False, positions="all")
    assert run.words.loc[smollm2.tokenizer(" sky").input_ids].tolist() == [" sky"]
    for (_, rows), output in zip(run.positions.groupby("prompt_id", sort=False), run.prompts["output"], strict=True):
        assert "".join(run.text_of(rows["next_token_id"][rows["is_generated"]])) == output
    assert run.text_of([49000]) == ["#49000"]


@pytest.mark.parametrize(
    ("space", "parts"),
    [
        ("▁", (pre_tokenizers.Metaspace(), decoders.Metaspace())),
        ("Ġ", (pre_tokenizers.ByteLevel(), decoders.ByteLevel())),
    ],
)
def test_the_space_before_a_word_is_kept(space, parts):
    """Tokenizers that write a space as ▁ drop the first one of a text when they decode."""
    tokenizer = Tokenizer(WordLevel({"<unk>": 0, f"{space}of": 1, f"{space}a": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = parts
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    assert wrapped("of a").input_ids == [1, 2]
    assert token_texts(wrapped, [1, 2]) == {1: " of", 2: " a"}


def test_derived_columns_follow_from_the_entropies(tiny_llama, run_of):
    run = run_of(tiny_llama, TEXTS, max_new_tokens=8, window=3)
    entropy = run.layers("entropy")
    assert run.positions["valley_layer"].tolist() == [valley(row.tolist(), 3) for row in entropy]
    assert run.positions["perturbed"].tolist() == [bool(row[-1] > row[-2]) for row in entropy]
    assert run.positions["selected_layer"].eq(run.n_layers).all()
    assert run.positions["perturbed"].nunique() == 2, "an input on which both answers occur"


def test_a_generation_ends_at_an_end_token(run_of):
    """The end token is the last one recorded, others of the batch go on, and its reason is stop."""
    model = fresh("llama")
    free = run_of(model, TEXTS, max_new_tokens=8)
    emitted = [rows["next_token_id"].tolist() for _, rows in free.positions.groupby("prompt_id")]
    end = emitted[1][3]
    model.hf.generation_config.eos_token_id = [end, 299]
    for batch_size in (1, 3):
        run = run_of(model, TEXTS, max_new_tokens=8, batch_size=batch_size)
        for row, (expected, prompt) in enumerate(zip(emitted, run.prompts.to_dict("records"), strict=True)):
            cut = expected[: expected.index(end) + 1] if end in expected else expected
            rows = run.positions[run.positions["prompt_id"] == str(row)]
            assert rows["next_token_id"].tolist() == cut
            assert prompt["finish_reason"] == ("stop" if end in expected else "length")
            assert prompt["n_generated_tokens"] == len(cut)
    assert model.hf.generation_config.eos_token_id == [end, 299], "the model's own settings are back"


def test_a_checkpoints_own_sampling_settings_do_not_colour_a_greedy_trace(run_of):
    model = fresh("llama")
    plain = run_of(model, TEXTS, max_new_tokens=6)
    for name, value in {"temperature": 0.5, "top_k": 3, "top_p": 0.4, "min_p": 0.2, "typical_p": 0.3}.items():
        setattr(model.hf.generation_config, name, value)
    assert run_of(model, TEXTS, max_new_tokens=6).positions.equals(plain.positions)


def test_sampling_follows_the_seed_and_leaves_the_global_generator_alone(tiny_llama, run_of):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    runs = [run_of(tiny_llama, TEXTS, max_new_tokens=6, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    tokens = [run.positions["next_token_id"].tolist() for run in runs]
    assert tokens[0] == tokens[1] != tokens[2]
    assert torch.equal(before, torch.get_rng_state())


def test_given_text_is_traced_whole(tiny_llama, run_of):
    run = run_of(tiny_llama, ["abcd"], max_new_tokens=0)
    assert run.positions["position"].tolist() == [0, 1, 2, 3]
    assert not run.positions["is_generated"].any()
    assert run.positions["next_token_id"].isna().tolist() == [False] * 3 + [True]
    assert run.prompts["finish_reason"].tolist() == ["given"]
    assert run.manifest["mode"] == "replay"


def test_long_texts_are_measured_in_pieces(run_of):
    """Longer than the rows measured at once: the same numbers as in one piece, computed plainly."""
    model = fresh("llama", max_position_embeddings=3000)
    text = "all work and no play " * 130
    run = run_of(model, [text], max_new_tokens=0)
    assert len(run.positions) == 2730
    with torch.no_grad():
        logits = model.hf(input_ids=torch.tensor([model.tokenizer(text).input_ids])).logits[0].double()
    expected = torch.special.entr(torch.softmax(logits, -1)).sum(-1)
    np.testing.assert_allclose(run.layers("entropy")[:, -1], expected, atol=1e-4)


def test_a_prompt_with_broken_states_is_marked_and_the_run_goes_on(run_of):
    """One token's embedding is infinite: its prompt is reported, its neighbours in the batch are untouched."""
    hf = tiny_model("llama", tie_word_embeddings=False)
    model = ll.load(hf, tokenizer=tiny_tokenizer())
    clean = run_of(model, ["abc", "xyz", "def"], max_new_tokens=3, batch_size=3)
    with torch.no_grad():
        hf.model.embed_tokens.weight[model.tokenizer("y").input_ids[0]] = math.inf
    run = run_of(model, ["abc", "xyz", "def"], max_new_tokens=3, batch_size=3)
    assert run.prompts["finish_reason"].tolist() == ["length", "non_finite", "length"]
    assert run.manifest["totals"]["non_finite_prompts"] == 1
    kept = (run.positions["prompt_id"] != "1").to_numpy()
    for name in FLOATS:
        others = (clean.positions["prompt_id"] != "1").to_numpy()
        np.testing.assert_allclose(run.layers(name)[kept], clean.layers(name)[others], rtol=1e-5, atol=1e-6)
    assert np.isnan(run.layers("entropy")[~kept]).any()
    assert (~kept).sum() == 1, "and it emits nothing"
    assert run.partition()["n_tokens"].iloc[-1] == 6, "analyses leave the prompt out"


def test_sampling_survives_broken_logits(run_of):
    hf = tiny_model("llama")
    model = ll.load(hf, tokenizer=tiny_tokenizer())
    with torch.no_grad():
        hf.model.embed_tokens.weight[model.tokenizer("y").input_ids[0]] = math.nan
    run = run_of(model, ["abc", "xyz"], max_new_tokens=3, batch_size=2, temperature=1.0)
    assert run.prompts["finish_reason"].tolist() == ["length", "non_finite"]


def test_chat_templates_and_system_messages(run_of):
    model = fresh("llama")
    model.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    prompts = ["hi", [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]]
    texts = [
        run_of(model, prompts, max_new_tokens=0, **options).prompts["prompt"].tolist()
        for options in ({}, {"system": "s"})
    ]
    assert texts[0] == ["<user>hi<assistant>", "<user>a<assistant>b"]
    assert texts[1] == ["<system>s<user>hi<assistant>", "<system>s<user>a<assistant>b"]
    plain = run_of(model, ["hi"], max_new_tokens=0, chat_template=False)
    assert plain.prompts["prompt"].tolist() == ["hi"]
    assert plain.manifest["chat_template_sha256"] is None


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"max_new_tokens": -1}, "from 0"),
        ({"batch_size": 0}, "from 1"),
        ({"seed": -3}, "from 0"),
        ({"mode": "sideways"}, "replay"),
        ({"positions": "some"}, "generated"),
        ({"temperature": -1.0}, "0.001"),
        ({"temperature": math.nan}, "0.001"),
        ({"top_p": 0.0, "temperature": 1.0}, "above 0"),
        ({"top_p": 0.5}, "temperature"),
        ({"window": 0}, "from 1"),
        ({"window": 5}, "1..4"),
        ({"max_new_tokens": 2.5}, "from 0"),
        ({"batch_size": True}, "from 1"),
        ({"window": 2.0}, "from 1"),
        ({"temperature": "0.7"}, "one"),
        ({"temperature": 1e-45}, "0.001"),
        ({"temperature": 1.0, "max_new_tokens": 0}, "drop one"),
        ({"mode": "generate", "max_new_tokens": 0}, "drop one"),
        ({"positions": "generated", "max_new_tokens": 0}, "positions 'all'"),
        ({"system": "x"}, "leave"),
        ({"chat_template": True}, "leave"),
        ({"system": "x", "chat_template": False}, "drop one"),
    ],
)
def test_options_that_contradict_are_refused_before_anything_is_written(tiny_llama, tmp_path, options, advice):
    option, given = next(iter(options.items()))
    with refused(ll.OptionError, option, given, advice=advice):
        ll.trace(tiny_llama, ["a"], out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("prompts", "options", "option", "given"),
    [
        ([""], {}, None, ""),
        (["a" * 200], {}, "max_new_tokens", 1),
        (["a" * 100], {"max_new_tokens": 60}, "max_new_tokens", 60),
        ([[{"role": "user", "content": "a"}]], {}, "chat_template", "0"),
        ([], {}, "prompts", []),
    ],
)
def test_prompts_that_do_not_fit_are_refused_before_anything_is_written(
    tiny_llama, tmp_path, prompts, options, option, given
):
    with refused(ll.PromptError, option, given):
        ll.trace(tiny_llama, prompts, out=tmp_path / "run", **{"max_new_tokens": 1, **options})
    assert not (tmp_path / "run").exists()


def test_the_manifest_says_what_made_the_run(tiny_llama, run_of):
    run = run_of(tiny("qwen3_5_moe_text"), TEXTS, max_new_tokens=2, batch_size=2)
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert manifest["model"]["family"] == "qwen3_5_moe_text"
    assert manifest["model"]["layer_kinds"] == ["linear", "linear", "linear", "full"] * 2
    assert manifest["batches"] == [["0", "1"], ["2"]]
    assert manifest["totals"]["positions"] == 6
    for key in ("command", "created", "seed", "dataset", "strategy", "mode", "versions", "hardware", "window"):
        assert manifest[key] not in (None, "", {}) or key == "seed"


def test_float16_and_bfloat16_models(run_of):
    for dtype, tolerance in ((torch.bfloat16, 0.05), (torch.float16, 0.01)):
        exact = run_of(fresh("llama"), ["abc def"], max_new_tokens=0)
        model = ll.load(tiny_model("llama").to(dtype), tokenizer=tiny_tokenizer())
        run = run_of(model, ["abc def"], max_new_tokens=0)
        np.testing.assert_allclose(run.layers("entropy"), exact.layers("entropy"), atol=tolerance)
        np.testing.assert_allclose(run.layers("io_cosine"), exact.layers("io_cosine"), atol=tolerance)


def test_a_model_that_ignores_padding_is_refused_in_batches_and_traced_one_by_one(run_of):
    """RWKV has no attention mask: padding would run through its state."""
    config = transformers.RwkvConfig(
        vocab_size=307, hidden_size=48, attention_hidden_size=48, num_hidden_layers=4, context_length=128
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = transformers.RwkvForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model = ll.load(hf, tokenizer=tiny_tokenizer())
    with refused(ll.OptionError, "batch_size", advice="batch_size 1"):
        run_of(model, TEXTS, max_new_tokens=3, batch_size=3)
    assert set(run_of(model, TEXTS, max_new_tokens=3).prompts["finish_reason"]) <= {"stop", "length"}
    assert len(run_of(model, ["abc", "def"], max_new_tokens=3, batch_size=2).prompts) == 2, "nothing is padded here"


def test_an_answer_that_was_begun_is_carried_on(run_of):
    model = fresh("llama")
    model.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    chat = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "It is"},
    ]
    run = run_of(model, [chat], max_new_tokens=1)
    assert run.prompts["prompt"].tolist() == ["<system>s</><user>a</><assistant>It is"]
    with refused(ll.PromptError, "system", "t"):
        run_of(model, [chat], max_new_tokens=1, system="t")


def test_a_single_text_is_not_taken_for_a_list_of_letters(tiny_llama, run_of):
    for prompts in ("Hello", None, {"a": 1}):
        with pytest.raises((ll.PromptError, TypeError)):
            run_of(tiny_llama, prompts, max_new_tokens=1)
    assert len(run_of(tiny_llama, (text for text in TEXTS), max_new_tokens=1).prompts) == 3


def test_a_single_layer_can_be_traced(run_of):
    run = run_of(fresh("llama", num_hidden_layers=1), TEXTS, max_new_tokens=2)
    assert not run.positions["perturbed"].any()
    assert run.positions["valley_layer"].eq(1).all()


def test_the_padding_probe_survives_an_early_end(run_of):
    """Alone, the probe's prompt ends at once; beside a longer one it is padded on."""
    model = fresh("llama")
    with torch.no_grad():
        long = torch.linspace(3, 306, 9).long()
        end = int(model.hf(input_ids=long[None, 2:6]).logits[0, -1].argmax())
    model.hf.generation_config.eos_token_id = end
    assert len(run_of(model, TEXTS, max_new_tokens=2, batch_size=3).prompts) == 3
