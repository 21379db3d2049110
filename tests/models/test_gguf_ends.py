"""How texts begin and end with the tokenizer of a GGUF file, where transformers does not read what the file says."""

from types import SimpleNamespace

import pytest

from layerlens.models import gguf as reading


def written(path, kind, **flags):
    """A file that holds nothing but what it says of its tokenizer."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    if kind is not None:
        writer.add_tokenizer_model(kind)
    for name, value in flags.items():
        writer.add_bool(f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("kind", "flags", "expected"),
    [
        ("llama", {}, (True, False)),
        ("llama", {"add_bos_token": False}, (False, False)),
        ("gpt2", {}, (False, False)),
        ("gpt2", {"add_bos_token": True, "add_eos_token": True}, (True, True)),
        ("gemma4", {"add_bos_token": True}, (False, False)),
        (None, {"add_eos_token": True}, (False, True)),
    ],
)
def test_before_transformers_reads_it(kind, flags, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(reading.transformers, "__version__", "5.20.1")
    tokenizer = SimpleNamespace(add_bos_token=False, add_eos_token=False)
    reading._add_what_the_file_says(tokenizer, written(tmp_path / "a.gguf", kind, **flags))
    assert (tokenizer.add_bos_token, tokenizer.add_eos_token) == expected


def test_what_transformers_reads_itself_is_left_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(reading.transformers, "__version__", "5.23.0")
    tokenizer = SimpleNamespace(add_bos_token=False, add_eos_token=False)
    reading._add_what_the_file_says(tokenizer, written(tmp_path / "a.gguf", "llama", add_bos_token=True))
    assert tokenizer.add_bos_token is False
