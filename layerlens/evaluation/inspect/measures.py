"""What was measured inside the model while it gave an answer, as a few numbers for an evaluation's log."""

from typing import Any

import numpy as np

from layerlens.decode.loop import Generation


def measures_of(generation: Generation, n_layers: int) -> dict[str, Any]:
    """The numbers of one answer; None in place of each that its strategy does not tell.

    tokens           how many were emitted
    valley_rate      share of the tokens whose walk ended before layer L
    substituted      share of the tokens that are another than layer L's first choice
    mean_depth       mean of the chosen layer, of L
    projections      states that went through the unembedding, of each token on average
    final_entropy    mean entropy of layer L in nats, where the strategy reads it
    """
    steps = generation.steps
    if not len(steps):
        return {"tokens": 0}
    walked = steps["valley_layer"].dropna()
    last = _last_entropies(steps["entropy"]) if "entropy" in steps else np.zeros(0)
    return {
        "tokens": len(steps),
        "valley_rate": float((walked < n_layers).mean()) if len(walked) else None,
        "substituted": float((steps["next_token_id"] != steps["last_token_id"]).mean()),
        "mean_depth": float(steps["selected_layer"].mean() / n_layers),
        "projections": float(steps["projections"].mean()),
        "final_entropy": float(last.mean()) if len(last) else None,
    }


def tokens_of(generation: Generation) -> dict[str, list[int]]:
    """The ids of the emitted tokens, and the layer that each came from, so that the answer can be traced later."""
    return {"ids": list(generation.token_ids), "layers": generation.steps["selected_layer"].tolist()}


def _last_entropies(windows: Any) -> Any:
    values = np.array([window[-1] for window in windows if len(window)], dtype=float)
    return values[np.isfinite(values)]
