"""Any causal language model in one shape."""

from layerlens.models.adapter import Model, adapt
from layerlens.models.check import checked
from layerlens.models.families import FAMILIES
from layerlens.models.loading import load
from layerlens.models.tiny import tiny_model, tiny_names, tiny_tokenizer
from layerlens.models.unembed import Unembed

__all__ = ["FAMILIES", "Model", "Unembed", "adapt", "checked", "load", "tiny_model", "tiny_names", "tiny_tokenizer"]
