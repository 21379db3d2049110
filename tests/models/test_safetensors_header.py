"""What a file of safetensors says it holds, against the library that wrote it, and files that say too much."""

import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from layerlens.models.safetensors_header import entries


def test_tensors_are_where_the_library_put_them(tmp_path):
    tensors = {"a": torch.arange(6, dtype=torch.float32).view(2, 3), "b": torch.ones(5, dtype=torch.bfloat16)}
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    found, content = entries(path), path.read_bytes()
    assert {name: (one.dtype, one.shape) for name, one in found.items()} == {"a": ("F32", (2, 3)), "b": ("BF16", (5,))}
    for name, tensor in tensors.items():
        stored = torch.frombuffer(bytearray(content[found[name].begin : found[name].end]), dtype=tensor.dtype)
        assert torch.equal(stored.view(tensor.shape), tensor)


def said(**entry):
    return json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | entry}).encode()


@pytest.mark.parametrize(
    "header",
    [
        b"[1]",
        b"[" * 100_000 + b"]" * 100_000,
        b"{",
        b'{"a": 3}',
        said(dtype=None),
        said(shape="x"),
        said(shape=[-1]),
        said(shape=[2**64]),
        said(shape=[True]),
        said(data_offsets=[4, 0]),
        said(data_offsets=[0, 4, 8]),
        said(data_offsets=[0, 4_000_000_000_000]),
    ],
)
def test_a_header_that_cannot_be_is_refused(tmp_path, header):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"1234")
    with pytest.raises(ValueError, match=r".+"):
        entries(path)


@pytest.mark.parametrize("content", [b"", b"12", b"\xff" * 8 + b"{}", struct.pack("<Q", 10**9) + b"{}"])
def test_a_size_beyond_the_file_is_refused_before_anything_is_read(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="no safetensors header"):
        entries(path)
