"""What a folder's generation config says acts in every door as in transformers' own generate, or is told."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, WatermarkingConfig

import layerlens as ll
from layerlens.decode.generation_config import (
    _LEFT_OUT,
    _OPTIONS,
    _OPTIONS_OF_SAMPLING,
    _OTHERS,
    _OTHERS_OF_SAMPLING,
)
from layerlens.errors import Notice
from layerlens.models.tiny import tiny_model, tiny_tokenizer
from tests.refusals import refused
from tests.thorough import some

SHORT, LONG = "hello", "a longer text, and more"
NEW = 20


def loaded(**config: Any) -> ll.Model:
    hf = tiny_model("llama")
    for name, value in ({"eos_token_id": 300} | config).items():  # a token that is not emitted: the texts are long
        setattr(hf.generation_config, name, value)
    return ll.load(hf, tiny_tokenizer())


def by_transformers(model: ll.Model, text: str, strategy: ll.Strategy, **options: Any) -> list[int]:
    ids = torch.tensor([model.tokenizer(text).input_ids])
    hf: Any = model.hf
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": NEW, "tokenizer": model.tokenizer}
    with ll.decoding(model, strategy):
        emitted: list[int] = hf.generate(ids, **settings | options)[0, ids.shape[1] :].tolist()
    return emitted


@cache
def plain_tokens() -> list[int]:
    tokens: list[int] = ll.generate(loaded(), SHORT, max_new_tokens=NEW).token_ids
    return tokens


FIRST, SECOND = plain_tokens()[:2]
ACTING: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 5.0},
    "suppress_tokens": {"suppress_tokens": [FIRST, SECOND]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [FIRST]},
    "bad_words_ids": {"bad_words_ids": [[FIRST], [SECOND, FIRST]]},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "sequence_bias": {"sequence_bias": {(FIRST,): -50.0, (SECOND, FIRST): 3.0}},
    "min_length": {"min_length": 12, "eos_token_id": [FIRST, SECOND]},
    "min_new_tokens": {"min_new_tokens": 4, "eos_token_id": FIRST},
    "forced_eos_token_id": {"forced_eos_token_id": 2},
    "exponential_decay": {"exponential_decay_length_penalty": (2, 9.0), "eos_token_id": 7},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 50.0},
    "several end tokens": {"eos_token_id": [SECOND, 5]},
    "several together": {"repetition_penalty": 1.7, "suppress_tokens": [FIRST], "no_repeat_ngram_size": 2},
}


@pytest.mark.parametrize("strategy", some([ll.Last(), ll.Fixed(offset=1)], 1))
@pytest.mark.parametrize("config", ACTING.values(), ids=ACTING)
def test_every_entry_acts_as_in_transformers(config: dict[str, Any], strategy: ll.Strategy, tmp_path: Path) -> None:
    model = loaded(**config)
    wanted = [by_transformers(model, text, strategy) for text in (SHORT, LONG)]
    assert wanted[0] != by_transformers(loaded(), SHORT, strategy) or isinstance(strategy, ll.Fixed)  # it acts
    alone = [ll.generate(model, text, strategy=strategy, max_new_tokens=NEW).token_ids for text in (SHORT, LONG)]
    assert alone == wanted
    # padding beside a longer prompt counts for nothing
    both = ll.generate(model, [SHORT, LONG], strategy=strategy, max_new_tokens=NEW, batch_size=2)
    assert [one.token_ids for one in both] == wanted
    run = ll.trace(
        model, [SHORT], strategy=strategy, max_new_tokens=NEW, chat_template=False, out=tmp_path, progress=False
    )
    assert run.tokens["next_token_id"].tolist() == wanted[0]


def test_a_stop_string_of_the_folder_ends_every_door() -> None:
    model = loaded()
    text = model.tokenizer.decode(plain_tokens())
    model.hf.generation_config.stop_strings = [text[2:4]]
    found = ll.generate(model, SHORT, max_new_tokens=NEW)
    assert found.finish_reason == "stop"
    assert found.token_ids == by_transformers(model, SHORT, ll.Last())
    assert len(found.token_ids) < NEW


@pytest.mark.parametrize("config", [{"top_k": 3}, {"top_p": 0.3}, {"min_p": 0.2}, {"typical_p": 0.4, "top_k": 50}])
def test_entries_of_sampling_act_where_a_temperature_is_given(config: dict[str, Any]) -> None:
    model = loaded(**config)
    torch.manual_seed(11)
    options = {"do_sample": True, "temperature": 1.5} | {"top_k": config.get("top_k", 0)}
    wanted = by_transformers(model, SHORT, ll.Fixed(offset=1), **options)
    found = ll.generate(model, SHORT, strategy=ll.Fixed(offset=1), max_new_tokens=NEW, temperature=1.5, seed=11)
    assert found.token_ids == wanted
    everything = ll.generate(loaded(), SHORT, strategy=ll.Fixed(offset=1), max_new_tokens=NEW, temperature=1.5, seed=11)
    assert everything.token_ids != wanted
    assert ll.generate(model, SHORT, max_new_tokens=NEW).token_ids == plain_tokens()  # greedy


def test_options_beat_the_folder_and_it_can_be_passed_over() -> None:
    model = loaded(repetition_penalty=5.0, suppress_tokens=[FIRST])
    assert ll.generate(model, SHORT, max_new_tokens=NEW, generation_config=False).token_ids == plain_tokens()
    softer = loaded(repetition_penalty=1.2, suppress_tokens=[FIRST])
    given = ll.generate(model, SHORT, max_new_tokens=NEW, repetition_penalty=1.2).token_ids
    assert given == ll.generate(softer, SHORT, max_new_tokens=NEW).token_ids


def test_a_folder_that_samples_is_told(tmp_path: Path) -> None:
    model = loaded(do_sample=True, temperature=0.6, top_k=20)
    with pytest.warns(Notice, match="temperature 0.6"):
        assert ll.generate(model, SHORT, max_new_tokens=NEW).token_ids == plain_tokens()
    ll.generate(model, SHORT, max_new_tokens=1, generation_config=False)  # without a word


LEFT_OUT: dict[str, Any] = {
    "num_beams": 4,
    "num_return_sequences": 2,
    "guidance_scale": 1.5,
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "prompt_lookup_num_tokens": 3,
    "token_healing": True,
    "constraints": [[5]],
    "force_words_ids": [[5]],
    "max_time": 0.3,
}
WITHOUT_EFFECT = {
    # on tokens: of the cache, of speed, of what is returned, of searches that another entry asks for, of assistants
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "compile_config", "disable_compile"),
    *("continuous_batching_config", "low_memory", "prefill_chunk_size", "use_mtp", "speculation_type"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"),
    *("early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty", "max_matching_ngram_size"),
    *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
    *("assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight"),
    *(
        "renormalize_logits",
        "_from_model_config",
        "_commit_hash",
        "transformers_version",
        "bos_token_id",
        "decoder_start_token_id",
    ),
    # what docs/decoding.md says of them: the lengths are options, ends and pads are the tokenizer's too
    *("max_length", "max_new_tokens", "eos_token_id", "pad_token_id", "do_sample", "temperature"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_left_out_is_told_beside_other_notices(name: str) -> None:
    model = loaded(**{"do_sample": True, "max_time": 0.3, name: LEFT_OUT[name]})
    with pytest.warns(Notice) as told:
        assert ll.generate(model, SHORT, max_new_tokens=NEW).token_ids == plain_tokens()
    assert sorted(one for one in LEFT_OUT if any(f"({one} " in str(notice.message) for notice in told)) == sorted(
        {name, "max_time"}
    )
    assert any("do_sample" not in str(notice.message) and "samples" in str(notice.message) for notice in told)


def test_every_entry_that_transformers_knows_acts_or_is_told_or_has_no_effect() -> None:
    acts = {*_OPTIONS, *_OPTIONS_OF_SAMPLING, *_OTHERS, *_OTHERS_OF_SAMPLING}
    assert set(vars(GenerationConfig())) - acts - set(_LEFT_OUT) <= WITHOUT_EFFECT
    assert set(_LEFT_OUT) == set(LEFT_OUT)


def test_a_watermark_written_as_a_dict_is_one() -> None:
    watermark = {"greenlist_ratio": 0.5, "bias": 5.0}
    read = loaded(watermarking_config=WatermarkingConfig(**watermark))
    written = loaded(watermarking_config=watermark)
    marked = ll.generate(read, SHORT, max_new_tokens=NEW).token_ids
    assert ll.generate(written, SHORT, max_new_tokens=NEW).token_ids == marked != plain_tokens()


def test_what_acted_is_recorded_and_a_run_is_not_resumed_under_another(tmp_path: Path) -> None:
    model = loaded(suppress_tokens=[FIRST], repetition_penalty=1.3)
    options: dict[str, Any] = {"max_new_tokens": 3, "out": tmp_path / "run", "progress": False}
    run = ll.trace(model, [SHORT], **options)
    assert run.manifest["options"]["generation_config"] == {"suppress_tokens": [FIRST]}
    assert run.manifest["options"]["repetition_penalty"] == 1.3
    model.hf.generation_config.suppress_tokens = [SECOND]
    with refused(ll.RunError, given=tmp_path / "run", problem="generation config"):
        ll.trace(model, [SHORT], resume=True, **options)
    plain = ll.trace(loaded(), [SHORT], max_new_tokens=3, out=tmp_path / "plain", progress=False)
    assert plain.manifest["options"]["generation_config"] is None


def test_a_config_that_transformers_cannot_follow_is_refused_in_a_sentence() -> None:
    model = loaded()
    model.hf.generation_config.sequence_bias = {(999,): 1.0}  # outside the vocabulary
    with refused(ll.OptionError, "generation_config", True):
        ll.generate(model, SHORT, max_new_tokens=1)
