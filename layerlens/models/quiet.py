"""While models are loaded, other packages print nothing."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Progress bars and advice of transformers and others would hide what the user asked for."""
    from transformers.utils import logging as transformers_logging

    before, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    others = [logging.getLogger(name) for name in ("accelerate", "bitsandbytes")]
    levels = [logger.level for logger in others]
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    for logger in others:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
        for logger, level in zip(others, levels, strict=True):
            logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
