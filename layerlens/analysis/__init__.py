"""What a run's records say, as small tables with intervals. Nothing here needs a model or a GPU."""

from layerlens.analysis.agreement import agreement, earliest_agreement
from layerlens.analysis.comparison import compare, compare_outputs
from layerlens.analysis.decoding import (
    ENTROPY_BANDS,
    by_entropy_band,
    by_relative_position,
    valley_statistics,
    walk_depths,
)
from layerlens.analysis.kinds import kind_jumps
from layerlens.analysis.layers import by_layer, entropy_curves
from layerlens.analysis.onset import onset, onset_by_layer
from layerlens.analysis.overhead import overhead
from layerlens.analysis.partition import partition
from layerlens.analysis.phases import phases
from layerlens.analysis.substitutions import replacements, substituted_tokens, substitution_pairs, substitutions
from layerlens.analysis.valleys import valleys
from layerlens.analysis.word_shares import class_shares

__all__ = [
    "ENTROPY_BANDS",
    "agreement",
    "by_entropy_band",
    "by_layer",
    "by_relative_position",
    "class_shares",
    "compare",
    "compare_outputs",
    "earliest_agreement",
    "entropy_curves",
    "kind_jumps",
    "onset",
    "onset_by_layer",
    "overhead",
    "partition",
    "phases",
    "replacements",
    "substituted_tokens",
    "substitution_pairs",
    "substitutions",
    "valley_statistics",
    "valleys",
    "walk_depths",
]
