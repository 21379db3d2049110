"""An engine of vLLM in this process, what it answers, and what our own loop answers."""

import gc
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import layerlens as ll
from layerlens.decode.batch import Decoded, decode_batch
from layerlens.decode.chooser import Chooser
from layerlens.decode.options import GenerateOptions
from layerlens.decode.strategies import Strategy
from layerlens.engines.vllm.traces import unpacked
from layerlens.lens import IDENTITY, Transport
from layerlens.models import tiny_model, tiny_tokenizer

N_TOKENS = 16

# vLLM's attention on a CPU needs heads of 32 or more
_GROUPED = {"hidden_size": 128, "head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
_YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
WIDE: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 128, "n_head": 4},
    "gpt_oss": {
        **_GROUPED,
        "intermediate_size": 64,
        "rope_parameters": {**_YARN, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
    },
    "opt": {"hidden_size": 128, "num_attention_heads": 4, "word_embed_proj_dim": 128},
}
"""What differs between the tiny models here and those of all other tests."""


class Answers(NamedTuple):
    """What an engine answered to each prompt."""

    token_ids: list[list[int]]
    records: list[dict[str, Any] | None]


def written(family: str, folder: Path) -> str:
    """Write a tiny model of the family, or "smollm2", with its tokenizer."""
    if family == "smollm2":
        model = ll.load("smollm2-135m-instruct")
        model.hf.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
    else:
        tiny_model(family, **WIDE.get(family, _GROUPED)).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def ragged(n: int, longest: int = 19, n_vocab: int = 300) -> list[list[int]]:
    """Prompts of different lengths, the same in each run."""
    draw = random.Random(n)
    return [[draw.randrange(3, n_vocab) for _ in range(draw.randint(2, longest))] for _ in range(n)]


@contextmanager
def engine(folder: str, options: dict[str, Any] | None, **given: Any) -> Iterator[Any]:
    """An engine that was started with these options of layerlens, or without layerlens."""
    from vllm import LLM
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    settings = {"dtype": "float32", "enforce_eager": True, "max_model_len": 64, "max_num_seqs": 8} | given
    llm = LLM(folder, additional_config={} if options is None else {"layerlens": options}, **settings)
    try:
        yield llm
    finally:
        # at once: a traceback may hold the engine, and its end would then end what the next engine has begun
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def answers(
    llm: Any,
    prompts: Sequence[Sequence[int]],
    extras: Sequence[dict[str, Any] | None],
    n_tokens: int = N_TOKENS,
    **sampling: Any,
) -> Answers:
    """The engine's greedy answers, one for each prompt and its options of layerlens; None for a request without any."""
    from vllm import SamplingParams

    named = [None if extra is None else {"id": str(number), **extra} for number, extra in enumerate(extras)]
    params = [
        SamplingParams(
            max_tokens=n_tokens,
            ignore_eos=True,
            extra_args=None if extra is None else {"layerlens": extra},
            **({"temperature": 0} | sampling),
        )
        for extra in named
    ]
    given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    out = llm.generate(given, params, use_tqdm=False)
    last_ids = {str(number): one.outputs[0].token_ids[-1] for number, one in enumerate(out)}
    records = llm.collective_rpc("layerlens_take", args=(None, last_ids))[0]
    for record in records.values():
        if "layers" in record:
            record["layers"] = unpacked(record["layers"])
    return Answers(
        [list(one.outputs[0].token_ids) for one in out], [records.get(str(number)) for number in range(len(prompts))]
    )


def ours(
    folder: str,
    prompts: Sequence[Sequence[int]],
    strategy: Strategy,
    n_tokens: int = N_TOKENS,
    transport: Transport = IDENTITY,
) -> Decoded:
    """What the loop of layerlens answers with transformers' model."""
    model = ll.load(folder, dtype="float32")
    options = GenerateOptions(
        max_new_tokens=n_tokens, batch_size=len(prompts), eos_token_id=-1, generation_config=False
    )
    chooser = Chooser(model, strategy, 0, transport)
    return decode_batch(model, [list(prompt) for prompt in prompts], chooser, options, 0)


def assert_same(found: Answers, wanted: Decoded, rows: Sequence[int], tolerance: float = 1e-4) -> None:
    """Tokens, chosen layers and entropies of some rows are the same, and no record is missing or too many."""
    for row in rows:
        tokens, record, decided = found.token_ids[row], found.records[row], wanted.decisions[row]
        assert tokens == wanted.outputs[row], row
        assert record is not None
        n = len(tokens)
        # the engine may have begun a step beyond the end of a text
        assert record["place"][:n] == list(range(n))
        assert record["selected_layer"][:n] == decided.selected_layer.tolist()
        assert record["valley_layer"][:n] == decided.valley_layer.tolist()
        assert record["last_token_id"][:n] == decided.numbers[:, 0].tolist()
        values = np.array(record["values"][:n], dtype=float).reshape(n, -1)
        if values.size:
            read = ~np.isnan(values) & ~np.isnan(decided.values.numpy())
            assert read[:, -1].all()
            np.testing.assert_allclose(values[read], decided.values.numpy()[read], atol=tolerance)
