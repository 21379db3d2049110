"""Tokens for which another layer than the last one spoke."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from layerlens.analysis.sample import Sample, counted_pieces

if TYPE_CHECKING:
    from layerlens.run import Run


def substitutions(run: "Run") -> pd.DataFrame:
    """One row per token whose selected layer ranks another token first than the last layer does.

    Columns: prompt_id; position; last_token_id, the last layer's first choice; selected_token_id, the selected
    layer's; emitted_token_id, what followed (NA where nothing did; under sampling it may be neither); selected_layer;
    entropy_selected and entropy_last, in nats at the two layers. Empty for a run whose selected layer is always the
    last. In `attrs`, n_tokens says among how many tokens they were looked for.

    Raises:
        RunError: no token of the run can be counted.
    """
    tables, n_prompts, n_tokens, left_out = [], 0, 0, 0
    for piece, tokens in counted_pieces(run):
        tables.append(_of_piece(piece, tokens))
        n_prompts, n_tokens = n_prompts + tokens.n_prompts, n_tokens + len(tokens.rows)
        left_out = tokens.left_out
    table: pd.DataFrame = pd.concat(tables, ignore_index=True)
    table.attrs = {"n_prompts": n_prompts, "n_prompts_left_out": left_out, "n_tokens": n_tokens}
    return table


def _of_piece(run: "Run", tokens: Sample) -> pd.DataFrame:
    chosen = run.positions["selected_layer"].to_numpy(dtype=np.int64)
    top = run.layers("top_token_id")
    every = np.arange(len(chosen))
    replaced = top[every, chosen - 1] != top[:, -1]
    rows = np.sort(tokens.rows[replaced[tokens.rows]])
    positions = run.positions.iloc[rows]
    entropy = run.layers("entropy")
    table: pd.DataFrame = pd.DataFrame(
        {
            "prompt_id": positions["prompt_id"].to_numpy(),
            "position": positions["position"].to_numpy(),
            "last_token_id": top[rows, -1],
            "selected_token_id": top[rows, chosen[rows] - 1],
            "emitted_token_id": positions["next_token_id"].astype("Int64").to_numpy(),
            "selected_layer": chosen[rows],
            "entropy_selected": entropy[rows, chosen[rows] - 1],
            "entropy_last": entropy[rows, -1],
        }
    )
    return table
