"""The tables of a run directory (format 1): every column with its type, unit, bounds and meaning.

Layers are numbered 1..L (0 = embeddings); a per-layer column holds one list of L values per traced position.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from layerlens.errors import OptionError

FORMAT = 1
_DEFAULT_WINDOW = 10

_layer_floats = pa.list_(pa.float32())
_layer_ids = pa.list_(pa.int32())
_layer_tops = (pa.list_(pa.list_(pa.float32())), pa.list_(pa.list_(pa.int32())))


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
        """Whether each row holds a list of L values, or of L lists of K."""
        return bool(pa.types.is_list(self.type))

    @property
    def value_type(self) -> pa.DataType:
        """The type of a single value of a per-layer column."""
        inner = self.type.value_type
        return inner.value_type if pa.types.is_list(inner) else inner

    @property
    def is_nested(self) -> bool:
        """Whether each layer has a list of K values."""
        return self.per_layer and bool(pa.types.is_list(self.type.value_type))


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
JS = Column(
    "js_from_last", _layer_floats, "nats", "0..ln 2", "Jensen-Shannon divergence between the readouts of h(l) and h(L)"
)
NEXT_LOG_PROB = Column(
    "next_log_prob",
    _layer_floats,
    "nats",
    "<= 0",
    "ln p(next_token_id) in the readout of h(l); null where none followed",
)
NEXT_RANK = Column(
    "next_rank",
    _layer_ids,
    "",
    "0..V-1",
    "entries whose logit is above next_token_id's by more than rounding, in the readout of h(l); null as above",
)
TOP_K_TOKEN_IDS = Column(
    "top_k_token_ids", _layer_tops[1], "", "0..V-1", "the K first tokens of the readout of h(l), the likeliest first"
)
TOP_K_PROBS = Column("top_k_probs", _layer_tops[0], "1", "0..1", "their probabilities")
HALF_ENTROPY = Column(
    "half_entropy",
    _layer_floats,
    "nats",
    "0..ln V",
    "entropy of the readout of h(l−1) + what attention adds; null where that is not a state of the stream",
)
HALF_TOP_TOKEN_ID = Column(
    "half_top_token_id",
    _layer_ids,
    "",
    "0..V-1",
    "arg-max of the readout of h(l−1) + what attention adds; null as above",
)
CONFIDENCE = Column(
    "confidence",
    _layer_floats,
    "1",
    "0..2",
    "1 − H(softmax(x)) / ln d of what attention returns, x its d entries, plus the same of the MLP; null where the "
    "parts of a block cannot be told apart",
)
VOCAB_CONFIDENCE = Column(
    "vocab_confidence",
    _layer_floats,
    "1",
    "0..2",
    "1 − H / ln V of the readout of what attention returns, plus the same of the MLP; null as above",
)

ON_REQUEST: dict[str, tuple[Column, ...]] = {
    "kl": (KL,),
    "js": (JS,),
    "targets": (NEXT_LOG_PROB, NEXT_RANK),
    "top": (TOP_K_TOKEN_IDS, TOP_K_PROBS),
    "sublayers": (HALF_ENTROPY, HALF_TOP_TOKEN_ID),
    "confidence": (CONFIDENCE, VOCAB_CONFIDENCE),
}
"""Columns of tokens that a run has only where they were asked for, by the option that asks for them."""

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
    Column("text", pa.string(), "", "", "its text, leading space included"),
)

FINISH_REASONS = {
    "stop": "the model emitted an end token",
    "length": "max_new_tokens were generated",
    "given": "nothing was generated: the text was given",
    "non_finite": "a state or a readout was NaN or infinite: the text ends there, and analyses leave the prompt out",
}


def default_window(n_layers: int | None) -> int:
    """The default number of candidate layers of Eq. 7: 10, or all layers of a model that has fewer."""
    return _DEFAULT_WINDOW if n_layers is None else min(_DEFAULT_WINDOW, n_layers)


def refuse_deeper(window: int, n_layers: int) -> None:
    """OptionError where Eq. 7 has more candidate layers than the model has layers."""
    if window > n_layers:
        what = f"does not fit a model of {n_layers} layers"
        raise OptionError.about("window", window, what, f"give 1..{n_layers}")


def token_columns(manifest: Mapping[str, Any]) -> tuple[Column, ...]:
    """The columns of tokens that a run with this manifest has."""
    options = manifest.get("options", {})
    return (*TOKENS, *(column for option, columns in ON_REQUEST.items() if options.get(option) for column in columns))


def all_token_columns() -> tuple[Column, ...]:
    """The columns of tokens that a run can have."""
    return (*TOKENS, *(column for columns in ON_REQUEST.values() for column in columns))


def arrow_schema(columns: tuple[Column, ...]) -> pa.Schema:
    """The arrow schema of a declared table."""
    return pa.schema([(column.name, column.type) for column in columns])
