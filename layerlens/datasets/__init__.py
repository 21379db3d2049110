"""Prompts, wherever they come from: a known dataset, a file, or a list in Python.

    dataset("gsm8k", limit=8)        a dataset of the table in registry.py, from the hub or from a local copy
    read_prompts("prompts.jsonl")    a file of the user's own
    from_prompts(["some text"])      a list in Python

All three return a Dataset, whose prompts have ids that are the same in every run and under every limit.
"""

from layerlens.datasets.given import from_prompts, read_prompts
from layerlens.datasets.load import dataset
from layerlens.datasets.prompt import Dataset, Prompt
from layerlens.datasets.registry import names

__all__ = ["Dataset", "Prompt", "dataset", "from_prompts", "names", "read_prompts"]
