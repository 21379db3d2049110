"""Loops over an unembedding for which torch has no fast operation on a CPU, compiled when they are first needed.

`products` multiplies a few states with the unembedding as fast as memory delivers it. `row_sums` computes all sums of a
tile of logits while the tile is in the cache, `count_above` counts in it, and `mixed_sums` mixes its probabilities with
others. Each says where it does not apply, and its caller then uses torch.
"""

from layerlens.native.loops import count_above, mixed_sums, products, row_sums

__all__ = ["count_above", "mixed_sums", "products", "row_sums"]
