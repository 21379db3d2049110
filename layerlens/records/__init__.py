"""What a trace measured, as declared tables beside a manifest. Nothing here needs a model or a GPU."""

from layerlens.records.manifest import Manifest, new_manifest, read_manifest
from layerlens.records.schema import FINISH_REASONS, FORMAT, PROMPTS, TOKENS, WORDS, Column
from layerlens.records.store import RunWriter

__all__ = [
    "FINISH_REASONS",
    "FORMAT",
    "PROMPTS",
    "TOKENS",
    "WORDS",
    "Column",
    "Manifest",
    "RunWriter",
    "new_manifest",
    "read_manifest",
]
