"""Loops over an unembedding that torch has no fast operation for on a CPU, compiled when they are first needed.

`products` multiplies a few states with it at the speed at which memory gives it. `row_sums` takes all sums of a tile of
logits while the tile is in the cache, `count_above` counts in it. They say where they do not apply, and their callers
then use torch.
"""

from layerlens.native.loops import count_above, products, row_sums

__all__ = ["count_above", "products", "row_sums"]
