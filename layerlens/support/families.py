"""The model types of the installed transformers. Its mappings alone are imported, so that a misspelt type is refused
at once."""

import difflib
import re

import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from layerlens.errors import OptionError


def families() -> list[str]:
    """Every model type of the installed transformers' mapping of causal language models, sorted."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def picture_families() -> list[str]:
    """Every other model type of transformers' mapping of models for images and text, sorted."""
    return sorted(set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) - set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))


def refuse_unknown(name: str) -> None:
    """OptionError where transformers has no such type."""
    known = [*families(), *picture_families()]
    if name not in known:
        asked = re.split(r"[/_-]*\d", name.rpartition("/")[2].lower().replace("-", "_"))[0]
        meant = difflib.get_close_matches(name.lower(), known) or [
            one for one in known if asked and one.startswith(asked)
        ]
        meant = meant[:3]
        problem = f"transformers {transformers.__version__} has no causal language model of type {name!r}"
        advice = f"did you mean {' or '.join(meant)}?" if meant else f"give one such as {', '.join(families()[:3])}"
        raise OptionError(problem, advice, option="names", given=name)
