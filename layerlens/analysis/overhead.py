"""What decoding from the valley adds to a generated token (Table 5 of arXiv 2606.21906)."""

from typing import Any

import numpy as np
import pandas as pd

from layerlens.analysis.sample import sample
from layerlens.analysis.uncertainty import mean_interval
from layerlens.errors import RunError, spelled
from layerlens.records.cost import DecodingFlops
from layerlens.records.reader import Records

Ints = np.ndarray[Any, np.dtype[np.int64]]

PAPER_CONDITIONS = {
    "forward": "full forward pass",
    "unembedding": "one unembedding projection",
    "worst": "worst case, K=10",
    "depth": "mean extra projections, 0.116 per token",
}
"""The names that the paper's Table 5 has for the rows of `DecodingFlops.rows`. Its projection is 2,560 · 151,936
multiply-adds. The paper counts each of them as one operation. Its width and vocabulary are not those of the
checkpoint's config (2,048 and 248,320). Its worst case is K unembeddings, not the K − 1 that come on top."""


def layers_read(depth: Ints, window: int) -> Ints:
    """How many layers lazy walks of these depths, 0..K − 1, read beside the last one.

    A walk reads one layer more than it goes back, because it must see that the entropy there is not lower. At the end
    of the window there is no such layer.
    """
    return np.minimum(depth + 1, window - 1)


def overhead(run: Records) -> pd.DataFrame:
    """What a walk back costs beside the forward pass, for the model and the walks of a run.

    Columns: name, as in `DecodingFlops.rows`; what; mflops, 10^6 floating-point operations for a generated token, a
    multiply-add counted as two; percent_of_forward, the percentage of a forward pass without its unembedding;
    percent_of_last, the percentage of a token decoded from the last layer, its unembedding included; n_tokens;
    n_prompts. Rows that depend on the walk's depth have `_low` and `_high` (95 %, prompts resampled) too.
    `attrs["mean_depth"]` is the mean of L - valley_layer over generated tokens, `attrs["window"]` K.

    Raises:
        RunError: the run does not say what the model costs, or generated nothing.
    """
    counts = run.manifest["model"].get("multiply_adds")
    if not counts:
        raise RunError(
            f"{run.path} does not say what a pass of its model costs",
            "trace again with this version, and with a model whose config says how many experts a token goes through",
            given=run.path,
        )
    tokens = sample(run)
    generated = run.positions["is_generated"].to_numpy(dtype=bool)[tokens.rows]
    if not generated.any():
        advice = f"trace with {spelled('max_new_tokens')} above 0"
        raise RunError(f"{run.path} generated no token", advice, given=run.path)
    depth = run.n_layers - run.positions["valley_layer"].to_numpy(dtype=np.int64)[tokens.rows]
    window, n = int(run.manifest["window"]), tokens.by_prompt(generated)
    depths, reads = (
        [float(value) for value in mean_interval(tokens.by_prompt(np.where(generated, of, 0)), n, tokens.weights)]
        for of in (depth, layers_read(depth, window))
    )
    of_depth = [
        DecodingFlops(**counts, window=window, mean_depth=walked, mean_read=read)
        for walked, read in zip(depths, reads, strict=True)
    ]
    fixed = {row.name for row in DecodingFlops(**counts, window=window).rows()}
    rows: list[dict[str, Any]] = []
    for row, low, high in zip(*(flops.rows() for flops in of_depth), strict=True):
        entry = {"name": row.name, "what": row.what}
        for part, cost in (("", row), ("_low", low), ("_high", high)):
            bounded = row.name not in fixed or not part
            entry[f"mflops{part}"] = cost.flops / 1e6 if bounded else np.nan
            entry[f"percent_of_forward{part}"] = cost.percent_of_forward if bounded else np.nan
            entry[f"percent_of_last{part}"] = cost.percent_of_last if bounded else np.nan
        rows.append(entry | {"n_tokens": int(generated.sum()), "n_prompts": int((n > 0).sum())})
    table = tokens.frame(rows)
    table.attrs |= {"mean_depth": depths[0], "window": window}
    return table
