"""What a trace measured, as declared tables beside a manifest. Nothing here needs a model or a GPU."""

from layerlens.records.manifest import Manifest, new_manifest, read_manifest
from layerlens.records.merge import merge_runs
from layerlens.records.schema import (
    FINISH_REASONS,
    FORMAT,
    KL,
    PROMPTS,
    TOKENS,
    WORDS,
    Column,
    all_token_columns,
    token_columns,
)
from layerlens.records.store import RunWriter

__all__ = [
    "FINISH_REASONS",
    "FORMAT",
    "KL",
    "PROMPTS",
    "TOKENS",
    "WORDS",
    "Column",
    "Manifest",
    "RunWriter",
    "all_token_columns",
    "merge_runs",
    "new_manifest",
    "read_manifest",
    "token_columns",
]
