"""The names of the axes of tensors, for the whole package.

rows      states read out together: any mix of prompts and positions
batch     prompts that go through the model together
seq       positions of one padded batch
d_model   width of the residual stream
vocab     tokens that the model can emit
chosen    token ids whose log-probability is asked for
"""

from jaxtyping import Float, Int
from torch import Tensor

States = Float[Tensor, "rows d_model"]
Logits = Float[Tensor, "rows vocab"]
Scalars = Float[Tensor, " rows"]
TokenIds = Int[Tensor, " rows"]
Stream = Float[Tensor, "batch seq d_model"]

__all__ = ["Logits", "Scalars", "States", "Stream", "TokenIds"]
