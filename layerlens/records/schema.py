"""The tables of a run directory (format 1): every column with its type, unit, bounds and meaning.

Layers are numbered 1..L (0 = embeddings); a per-layer column holds one list of L values per traced position.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

FORMAT = 1
_DEFAULT_WINDOW = 10

_layer_floats = pa.list_(pa.float32())
_layer_ids = pa.list_(pa.int32())


@dataclass(frozen=True)
class Column:
    """One declared column: its name, arrow type, unit ("" where it has none), bounds and meaning."""

    name: str
    type: pa.DataType
    unit: str
    bounds: str
    meaning: str

    @property
    def per_layer(self) -> bool:
        """Whether each row holds a list of L values."""
        return bool(pa.types.is_list(self.type))


TOKENS = (
    Column("prompt_id", pa.string(), "", "", "joins prompts.parquet"),
    Column("position", pa.int32(), "tokens", ">= 0", "index of the state in the whole sequence, padding not counted"),
    Column("token_id", pa.int32(), "", "0..V-1", "the token at this position"),
    Column("next_token_id", pa.int32(), "", "0..V-1", "the token that followed; null where none did"),
    Column("is_generated", pa.bool_(), "", "", "the following token was emitted by the model, from this state"),
    Column("norm_ratio", _layer_floats, "1", ">= 0", "‖h(l) − h(l−1)‖ / ‖h(l−1)‖"),
    Column("io_cosine", _layer_floats, "1", "−1..1", "cos(h(l), h(l−1))"),
    Column("attn_ratio", _layer_floats, "1", ">= 0", "‖a‖ / ‖h(l−1)‖, a = what attention adds; null without one"),
    Column("mlp_ratio", _layer_floats, "1", ">= 0", "‖f‖ / ‖h(l−1) + a‖, f = what the MLP adds (‖h(l−1)‖ if parallel)"),
    Column("entropy", _layer_floats, "nats", "0..ln V", "entropy of the readout of h(l)"),
    Column("top_token_id", _layer_ids, "", "0..V-1", "arg-max of the readout of h(l)"),
    Column("valley_layer", pa.int16(), "layer", "1..L", "Eq. 7 with the manifest's window; L where there is no valley"),
    Column("selected_layer", pa.int16(), "layer", "1..L", "the layer whose logits were handed to the sampler"),
    Column("perturbed", pa.bool_(), "", "", "entropy[L] > entropy[L−1]"),
)

KL = Column(
    "kl_last_to_layer", _layer_floats, "nats", ">= 0", "KL(L ‖ l) = Σ p(L) ln(p(L) / p(l)), p(l) the readout of h(l)"
)
"""A column of tokens that a run has where it was asked for."""

PROMPTS = (
    Column("prompt_id", pa.string(), "", "", "unique in the run"),
    Column("prompt", pa.string(), "", "", "the text the model was given, chat template included"),
    Column("reference", pa.string(), "", "", "the dataset's reference answer; null where there is none"),
    Column("output", pa.string(), "", "", "the generated text without special tokens"),
    Column("n_prompt_tokens", pa.int32(), "tokens", ">= 1", "length of the prompt"),
    Column("n_generated_tokens", pa.int32(), "tokens", ">= 0", "length of the output, end token included"),
    Column("finish_reason", pa.string(), "", "", "stop | length | given | non_finite"),
    Column("seconds", pa.float64(), "s", ">= 0", "wall time of the prompt's batch over its number of prompts"),
)

WORDS = (
    Column("token_id", pa.int32(), "", "0..V-1", "an id that occurs in the run"),
    Column("text", pa.string(), "", "", "what it says within a text, leading space included"),
)

FINISH_REASONS = {
    "stop": "the model emitted an end token",
    "length": "max_new_tokens were generated",
    "given": "nothing was generated: the text was given",
    "non_finite": "a state or a readout was NaN or infinite: the text ends there, and analyses leave the prompt out",
}


def default_window(n_layers: int | None) -> int:
    """How many candidate layers Eq. 7 has where none are asked for: 10, or all of a model of fewer."""
    return _DEFAULT_WINDOW if n_layers is None else min(_DEFAULT_WINDOW, n_layers)


def token_columns(manifest: Mapping[str, Any]) -> tuple[Column, ...]:
    """The columns of tokens that a run with this manifest has."""
    return (*TOKENS, KL) if manifest.get("options", {}).get("kl") else TOKENS


def arrow_schema(columns: tuple[Column, ...]) -> pa.Schema:
    """The arrow schema of a declared table."""
    return pa.schema([(column.name, column.type) for column in columns])
