"""Weights that let the rows of a batch change each other's numbers: not taken for a model that reads its padding."""

import torch

import layerlens as ll
from layerlens.decode import padding
from tests.conftest import stateful
from tests.refusals import refused


class Company(torch.nn.Module):
    """Leaves the largest columns of a batch alone and rounds the others, as LLM.int8 does."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, states):
        """What the inner module makes of states that were rounded by all rows together."""
        step = states.abs().max() / 8
        return self.inner((states / step).round() * step)


def model_with_company(*, says_so: bool):
    model = stateful("llama")
    for block in model.blocks:
        block.mlp.down_proj = Company(block.mlp.down_proj)
    if says_so:
        model.hf.is_quantized, model.hf.quantization_method = True, "bitsandbytes"
    return model


def test_company_is_no_padding():
    padding.refuse_ignored_padding(model_with_company(says_so=True))


def test_without_quantised_weights_it_is_refused():
    with refused(ll.OptionError, "batch_size"):
        padding.refuse_ignored_padding(model_with_company(says_so=False))
