"""Any causal language model in one shape. Names are imported when first used: the families table must not wait for
torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerlens.models.adapter import adapt
    from layerlens.models.check import checked
    from layerlens.models.families import FAMILIES
    from layerlens.models.loading import load
    from layerlens.models.model import Model
    from layerlens.models.tiny import tiny_model, tiny_names, tiny_tokenizer
    from layerlens.models.unembed import Unembed

__all__ = ["FAMILIES", "Model", "Unembed", "adapt", "checked", "load", "tiny_model", "tiny_names", "tiny_tokenizer"]

_HOME_OF = {
    "FAMILIES": "families",
    "Model": "model",
    "Unembed": "unembed",
    "adapt": "adapter",
    "checked": "check",
    "load": "loading",
    "tiny_model": "tiny",
    "tiny_names": "tiny",
    "tiny_tokenizer": "tiny",
}


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(f"layerlens.models.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
