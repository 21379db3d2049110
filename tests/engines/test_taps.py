"""States that blocks carry to the end, in models that call their blocks as vLLM's do."""

import pytest
import torch
from torch import nn

from layerlens.engines.vllm.taps import tap
from layerlens.errors import ModelError

D = 6


class Added(nn.Module):
    """A block that hands on what it adds, beside the stream before it: most of vLLM's."""

    def __init__(self, seed):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(D, D, generator=torch.Generator().manual_seed(seed)))

    def forward(self, positions, hidden_states, residual):
        residual = hidden_states if residual is None else hidden_states + residual
        return torch.tanh(residual @ self.weight), residual


class InOne(Added):
    """A block that hands on the stream itself."""

    def forward(self, hidden_states):
        return hidden_states + torch.tanh(hidden_states @ self.weight)


class CohereDecoderLayer(Added):
    """A block that is given a second tensor, and hands on the whole stream in the first."""

    def forward(self, positions, hidden_states, residual):
        return hidden_states + torch.tanh(hidden_states @ self.weight), hidden_states


class Norm(nn.Module):
    """An operator that passes on what it is given to a kernel, as vLLM's do."""

    def forward(self, *given, **named):
        return self.forward_native(*given, **named)

    def forward_native(self, x, residual=None):
        if residual is None:
            return torch.nn.functional.normalize(x, dim=-1)
        x = x + residual
        return torch.nn.functional.normalize(x, dim=-1), x


class Model(nn.Module):
    def __init__(self, kind, n_layers):
        super().__init__()
        self.layers = nn.ModuleList(kind(seed) for seed in range(n_layers))
        self.norm = Norm()

    def forward(self, states):
        """What the norm gives, and for the test the stream before and after each block."""
        residual, streams = None, [states]
        for block in self.layers:
            if isinstance(block, InOne):
                states = block(states)
                streams.append(states)
            else:
                states, residual = block(torch.arange(len(states)), states, residual=residual)
                whole = isinstance(block, CohereDecoderLayer)
                streams.append(states if whole else states[..., :D] + residual)
        if residual is None or isinstance(self.layers[0], CohereDecoderLayer):
            return self.norm(states), streams
        return self.norm(states, residual)[0], streams


@pytest.mark.parametrize("kind", [Added, InOne, CohereDecoderLayer])
@pytest.mark.parametrize("layers", [(2, 3, 4), (0, 1, 2, 3, 4), (1, 4), (4,), (0, 4)])
def test_the_states_of_the_wanted_layers_come_out_in_order(kind, layers):
    model, given = Model(kind, 4), torch.randn(7, D, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        normed, streams = model(given)
        tap(model.layers, model, "norm", layers, D)
        wide, _ = model(given)
    assert wide.shape == (7, D * (1 + len(layers)))
    torch.testing.assert_close(wide[:, :D], normed)
    for place, layer in enumerate(layers):
        torch.testing.assert_close(wide[:, D * (1 + place) : D * (2 + place)], streams[layer])


def test_a_block_that_reads_something_of_another_name_is_refused():
    class Other(Added):
        def forward(self, positions, stream):
            return stream

    with pytest.raises(ModelError, match="positions, stream"):
        tap(Model(Other, 2).layers, Model(Other, 2), "norm", (1, 2), D)
