"""Kernels of attention that compute something else than the model says."""

import warnings

from transformers import PreTrainedModel

from layerlens.compat import attention_of
from layerlens.errors import Notice


def keep_softcap(hf: PreTrainedModel) -> None:
    """Let a model that caps its scores of attention, as Gemma 2 does, run the kernel that caps them.

    transformers 5.17 to 5.20 choose a kernel for such models that leaves the cap out. Newer ones refuse that kernel.
    """
    if _loses_softcap(hf):
        hf.set_attn_implementation("eager")


def notice_lost_softcap(hf: PreTrainedModel, source: str) -> None:
    """A `Notice` where a model in memory leaves out the cap of its scores of attention."""
    if _loses_softcap(hf):
        message = (
            f"{source} runs attention by sdpa, which leaves out the soft-cap of its scores, so that its numbers are "
            'slightly wrong; call set_attn_implementation("eager") on the model first'
        )
        warnings.warn(message, Notice, stacklevel=4)


def _loses_softcap(hf: PreTrainedModel) -> bool:
    config = hf.config.get_text_config(decoder=True)
    return getattr(config, "attn_logit_softcapping", None) is not None and attention_of(hf.config) == "sdpa"
