"""Gemma 3 in plain NumPy, read from the bytes of its GGUF file; none of transformers' code, and none of the package's.

The file's norm weights multiply as they stand: the converter has added the 1 that transformers keeps apart.
"""

import functools
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Floats = np.ndarray[Any, Any]

FULL_EVERY = 6
LOCAL_THETA = 10_000.0
CONTROL, USER_DEFINED = 3, 4


@dataclass
class File:
    """What a GGUF file holds: its metadata, and its tensors as they are stored."""

    metadata: dict[str, Any]
    stored: dict[str, tuple[Floats, gguf.GGMLQuantizationType]]

    def tensor(self, name: str) -> Floats:
        """A tensor, dequantised to float32."""
        return gguf.quants.dequantize(*self.stored[name])


def read(path: Path) -> File:
    """The file at that path, by the layout of version 3; integers are little-endian."""
    data, at = np.memmap(path, mode="r", dtype=np.uint8).view(np.ndarray), 24
    n_tensors, n_pairs = struct.unpack_from("<QQ", data, 8)

    def number(code: str) -> Any:
        nonlocal at
        (value,) = struct.unpack_from(f"<{code}", data, at)
        at += struct.calcsize(f"<{code}")
        return value

    def text() -> str:
        nonlocal at
        length = number("Q")
        at += length
        return bytes(data[at - length : at]).decode()

    def value(kind: int) -> Any:
        if kind == 9:
            inner = number("I")
            return [value(inner) for _ in range(number("Q"))]
        return text() if kind == 8 else number("BbHhIif?__Qqd"[kind])

    metadata = {}
    for _ in range(n_pairs):
        key = text()
        metadata[key] = value(number("I"))
    entries = []
    for _ in range(n_tensors):
        name = text()
        shape = [number("Q") for _ in range(number("I"))]
        entries.append((name, shape[::-1], gguf.GGMLQuantizationType(number("I")), number("Q")))
    start, stored = -(-at // 32) * 32, {}
    for name, shape, kind, offset in entries:
        per_block, n_bytes = gguf.GGML_QUANT_SIZES[kind]
        row = shape[-1] // per_block * n_bytes
        n_rows = int(np.prod(shape[:-1]))
        raw = data[start + offset : start + offset + n_rows * row].reshape(*shape[:-1], row)
        stored[name] = (raw.view(np.float32) if kind == gguf.GGMLQuantizationType.F32 else raw, kind)
    return File(metadata, stored)


class Gemma3:
    """The forward pass of the file's model over one text."""

    def __init__(self, file: File) -> None:
        self.tensor = functools.cache(file.tensor)
        own = {key.removeprefix("gemma3."): value for key, value in file.metadata.items()}
        self.n_layers, self.window = own["block_count"], own["attention.sliding_window"]
        self.n_heads, self.head = own["attention.head_count"], own["attention.key_length"]
        self.theta, self.epsilon = own["rope.freq_base"], own["attention.layer_norm_rms_epsilon"]
        self.embeddings = self.tensor("token_embd.weight")
        assert own["attention.head_count_kv"] == 1

    def states(self, ids: list[int]) -> tuple[list[Floats], list[Floats]]:
        """The stream after the embeddings and after each layer, and what each attention adds to it: [seq, d] each."""
        stream = self.embeddings[ids] * np.float32(np.sqrt(self.embeddings.shape[1]))
        streams, attentions = [stream], []
        for layer in range(self.n_layers):
            attention = self._norm(f"blk.{layer}.post_attention_norm", self._attend(layer, stream))
            middle = stream + attention
            stream = middle + self._norm(f"blk.{layer}.post_ffw_norm", self._feed(layer, middle))
            streams.append(stream)
            attentions.append(attention)
        return streams, attentions

    def logits(self, states: Floats) -> Floats:
        """The readout of states [n, d]: [n, vocab]."""
        return self._norm("output_norm", states) @ self.embeddings.T

    def _attend(self, layer: int, stream: Floats) -> Floats:
        is_full = (layer + 1) % FULL_EVERY == 0
        blk, n = f"blk.{layer}", len(stream)
        x = self._norm(f"{blk}.attn_norm", stream)
        queries = self._times(f"{blk}.attn_q", x).reshape(n, self.n_heads, self.head)
        keys = self._times(f"{blk}.attn_k", x).reshape(n, 1, self.head)
        theta = self.theta if is_full else LOCAL_THETA
        queries = self._turn(self._norm(f"{blk}.attn_q_norm", queries), theta)
        keys = self._turn(self._norm(f"{blk}.attn_k_norm", keys), theta)
        scores = queries.transpose(1, 0, 2) @ keys[:, 0].T / np.sqrt(np.float32(self.head))
        back = np.arange(n)[:, None] - np.arange(n)
        hidden = (back < 0) | ((back >= self.window) & (not is_full))
        weights = np.exp(np.where(hidden, -np.inf, scores - scores.max(axis=2, keepdims=True)))
        mixed = (weights / weights.sum(axis=2, keepdims=True)) @ self._times(f"{blk}.attn_v", x)
        return self._times(f"{blk}.attn_output", mixed.transpose(1, 0, 2).reshape(n, -1))

    def _feed(self, layer: int, stream: Floats) -> Floats:
        x = self._norm(f"blk.{layer}.ffn_norm", stream)
        gate, up = (self._times(f"blk.{layer}.ffn_{name}", x) for name in ("gate", "up"))
        bent = gate * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi, dtype=np.float32) * (gate + 0.044715 * gate**3)))
        return self._times(f"blk.{layer}.ffn_down", bent * up)

    def _times(self, name: str, x: Floats) -> Floats:
        return x @ self.tensor(f"{name}.weight").T

    def _norm(self, name: str, x: Floats) -> Floats:
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + self.epsilon) * self.tensor(f"{name}.weight")

    def _turn(self, x: Floats, theta: float) -> Floats:
        """Rotary positions: each half of a head turned into the other. [seq, heads, head]"""
        half = self.head // 2
        angles = np.outer(np.arange(len(x)), theta ** (-np.arange(half) / half))[:, None].astype(np.float32)
        one, two = x[..., :half], x[..., half:]
        return np.concatenate(
            [one * np.cos(angles) - two * np.sin(angles), two * np.cos(angles) + one * np.sin(angles)], axis=-1
        )


class Pieces:
    """The file's vocabulary, and texts cut into it as SentencePiece does: join the pair with the best score, repeat."""

    def __init__(self, file: File) -> None:
        self.texts, self.scores, self.kinds = (file.metadata[f"tokenizer.ggml.{key}"] for key in _VOCABULARY)
        self.ids = {text: token_id for token_id, text in enumerate(self.texts)}
        whole = [text for text, kind in zip(self.texts, self.kinds, strict=True) if kind in (CONTROL, USER_DEFINED)]
        self._whole = re.compile(f"({'|'.join(map(re.escape, sorted(whole, key=len, reverse=True)))})")

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without the one that begins it; a character that is no piece becomes its bytes."""
        found = []
        for index, part in enumerate(self._whole.split(text)):
            pieces = [part] if index % 2 else self._joined(list(part.replace(" ", "▁")))
            for piece in pieces:
                spelled = [piece] if piece in self.ids else [f"<0x{byte:02X}>" for byte in piece.encode()]
                found += [self.ids[name] for name in spelled]
        return found

    def _joined(self, pieces: list[str]) -> list[str]:
        while True:
            pairs = [(self.ids.get(pieces[at] + pieces[at + 1]), -at) for at in range(len(pieces) - 1)]
            known = [(self.scores[joined], at) for joined, at in pairs if joined is not None]
            if not known:
                return pieces
            at = -max(known)[1]
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]


_VOCABULARY = ("tokens", "scores", "token_type")
