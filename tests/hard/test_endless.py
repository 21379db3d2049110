"""What never ends, never begins, or would take very long: each is refused in a moment, and named."""

import json
import os
import shutil

import pandas as pd
import pytest

import layerlens as ll
from layerlens.datasets import read_prompts
from layerlens.decode import chat
from layerlens.models import tiny_model, tiny_tokenizer
from tests.hard.doors import knock
from tests.needs_inspect import needs_inspect
from tests.refusals import refused

FEW = ("--max-new-tokens", "2", "--device", "cpu")


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A model's folder that a test may change."""
    return shutil.copytree(tiny_folder("llama"), tmp_path / "model")


def test_a_file_that_is_none(tmp_path):
    zero, pipe = tmp_path / "zero.txt", tmp_path / "pipe.jsonl"
    zero.symlink_to("/dev/zero")
    os.mkfifo(pipe)
    for path in (zero, pipe):
        with refused(ll.PromptError, given=path, problem="not a regular file"):
            read_prompts(path)


def test_a_prompt_that_no_context_holds(folder, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "abc " * 5_000_000}) + "\n")
    said = knock("trace", "--model", folder, "--prompts", prompts, *FEW, "--out", tmp_path / "run")
    assert "20,000,000 characters" in said
    assert not (tmp_path / "run").exists()


@needs_inspect
def test_a_row_of_a_benchmark_that_no_context_holds(folder, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text('question,answer\n"' + "x " * 10_000_000 + '",#### 3\n')
    out = tmp_path / "out"
    given = ("--tasks", "gsm8k", "--data-file", rows, "--max-new-tokens", "2", "--out", out)
    knock("eval", "--model", folder, "--device", "cpu", *given)
    answers = pd.read_parquet(out / "answers.parquet")
    assert answers["stop_reason"].tolist() == ["model_length"]


def test_a_stop_string_that_no_text_can_hold(tiny_llama):
    with refused(ll.OptionError, "stop_strings", advice="1,000 at most"):
        ll.generate(tiny_llama, "abc", stop_strings="x" * 100_000)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "did not end"),
        (
            "{% if 'qz0xk' in messages[0].content %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
            "{% endfor %}{% endif %}{{ messages[0].content }}",
            "did not end",
        ),
        ("{% macro again(n) %}{{ again(n) }}{% endmacro %}{{ again(1) }}", "recursion"),
    ],
)
def test_a_chat_template_that_does_not_end(template, problem, monkeypatch):
    monkeypatch.setattr(chat, "_LONGEST", 0.5)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    model = ll.load(tiny_model("llama"), tokenizer=tokenizer)
    with pytest.raises(ll.PromptError, match=problem):
        ll.generate(model, "abc", max_new_tokens=2)


@pytest.mark.parametrize("n_layers", [100_000, 10**30])
def test_a_config_of_more_layers_than_can_be(folder, n_layers):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": n_layers}))
    assert f"{n_layers:,} layers" in knock("generate", "--model", folder, "--prompt", "abc", *FEW)


def test_the_rest_of_a_folder_that_is_nested_too_deep(folder):
    deep = '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        whole = (folder / name).read_bytes() if (folder / name).exists() else None
        (folder / name).write_text(deep)
        knock("generate", "--model", folder, "--prompt", "abc", *FEW)
        if whole is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(whole)
