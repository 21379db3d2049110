"""Engines that run a model somewhere else than in this process's transformers."""
