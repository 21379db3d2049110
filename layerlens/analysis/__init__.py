"""Analyses turn the records of a run into small tables with intervals. Nothing here needs a model or a GPU."""

from layerlens.analysis.agreement import agreement, earliest_agreement
from layerlens.analysis.comparison import compare, compare_outputs
from layerlens.analysis.decoding import (
    ENTROPY_BANDS,
    by_entropy_band,
    by_relative_position,
    valley_statistics,
    walk_depths,
)
from layerlens.analysis.drafts import dispensable
from layerlens.analysis.kinds import kind_jumps
from layerlens.analysis.layers import by_layer, entropy_curves
from layerlens.analysis.onset import onset, onset_by_layer
from layerlens.analysis.overhead import overhead
from layerlens.analysis.partition import partition
from layerlens.analysis.parts import half_step_curves, parts_by_layer, perturbation_parts
from layerlens.analysis.phases import phases
from layerlens.analysis.settling import THRESHOLDS, settling, settling_by_layer
from layerlens.analysis.substitutions import replacements, substituted_tokens, substitution_pairs, substitutions
from layerlens.analysis.tokens import by_token
from layerlens.analysis.valleys import valleys
from layerlens.analysis.word_shares import class_shares

__all__ = [
    "ENTROPY_BANDS",
    "THRESHOLDS",
    "agreement",
    "by_entropy_band",
    "by_layer",
    "by_relative_position",
    "by_token",
    "class_shares",
    "compare",
    "compare_outputs",
    "dispensable",
    "earliest_agreement",
    "entropy_curves",
    "half_step_curves",
    "kind_jumps",
    "onset",
    "onset_by_layer",
    "overhead",
    "partition",
    "parts_by_layer",
    "perturbation_parts",
    "phases",
    "replacements",
    "settling",
    "settling_by_layer",
    "substituted_tokens",
    "substitution_pairs",
    "substitutions",
    "valley_statistics",
    "valleys",
    "walk_depths",
]
