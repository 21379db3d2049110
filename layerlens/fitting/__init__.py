"""Lenses fitted to a model: maps, learnt from texts, from the states of each layer to states that its head can read."""

from layerlens.fitting.fit import fit_lens
from layerlens.fitting.fitted import Fitted

__all__ = ["Fitted", "fit_lens"]
