"""Lenses fitted to a model: what brings the states of each layer to where its head can read them, learnt from texts."""

from layerlens.fitting.fit import fit_lens
from layerlens.fitting.fitted import Fitted

__all__ = ["Fitted", "fit_lens"]
