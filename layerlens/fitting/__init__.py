"""Lenses fitted to a model: maps, learnt from texts, from the states of each layer to states that its head can read.

Nothing is imported here, so that options can be refused before torch is loaded.
"""
