"""Answers and whether they are right. `ablation` needs a model; `scoring` and `answers` never import torch."""
