"""Which tokens decoding from the valley would change, and at which another layer than the last one was decoded from."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from layerlens.analysis.sample import Sample, counted_pieces, generated, sample
from layerlens.records.reader import Records


def substitutions(run: Records) -> pd.DataFrame:
    """One row per substitution: a generated token at which the valley layer ranks another token first than layer L.

    These are the events that `substitution_pairs` and `valley_statistics` count, whichever layer the run was decoded
    from; `replacements` lists what the run's own strategy did.

    Columns: prompt_id; position; last_token_id, the last layer's first choice; valley_token_id, the valley layer's;
    emitted_token_id, what followed; valley_layer; selected_layer, the one that was decoded from; entropy_valley and
    entropy_last, in nats at the two layers. In `attrs`, n_tokens says among how many tokens they were looked for.

    Raises:
        RunError: no token was generated that can be counted.
    """
    return _rows(run, generated, "valley")


def replacements(run: Records) -> pd.DataFrame:
    """One row per replacement: a token whose selected layer ranks another token first than the last layer does.

    The selected layer is the one whose logits the sampler got. Where a run was decoded from the valley at every token,
    without a shift and with the trace's window, its replacements are its substitutions. Empty for a run whose selected
    layer is always the last.

    Columns: prompt_id; position; last_token_id, the last layer's first choice; selected_token_id, the selected
    layer's; emitted_token_id, what followed (NA where nothing did; under sampling it may be neither); selected_layer;
    entropy_selected and entropy_last, in nats at the two layers. In `attrs`, n_tokens says among how many tokens they
    were looked for.

    Raises:
        RunError: no token of the run can be counted.
    """
    return _rows(run, sample, "selected")


def _rows(run: Records, tokens_of: Callable[[Records], Sample], by: str) -> pd.DataFrame:
    """The tokens at which the layer "valley" or "selected" disagrees with the last one."""
    tables, n_prompts, n_tokens, left_out = [], 0, 0, 0
    for piece, tokens in counted_pieces(run, tokens_of):
        tables.append(_of_piece(piece, tokens, by))
        n_prompts, n_tokens = n_prompts + tokens.n_prompts, n_tokens + len(tokens.rows)
        left_out = tokens.left_out
    table: pd.DataFrame = pd.concat(tables, ignore_index=True)
    table.attrs = {"n_prompts": n_prompts, "n_prompts_left_out": left_out, "n_tokens": n_tokens}
    return table


def _of_piece(run: Records, tokens: Sample, by: str) -> pd.DataFrame:
    layer = run.positions[f"{by}_layer"].to_numpy(dtype=np.int64)
    top = run.layers("top_token_id")
    differs = top[np.arange(len(layer)), layer - 1] != top[:, -1]
    rows = np.sort(tokens.rows[differs[tokens.rows]])
    positions = run.positions.iloc[rows]
    entropy = run.layers("entropy")
    columns: dict[str, Any] = {
        "prompt_id": positions["prompt_id"].to_numpy(),
        "position": positions["position"].to_numpy(),
        "last_token_id": top[rows, -1],
        f"{by}_token_id": top[rows, layer[rows] - 1],
        "emitted_token_id": positions["next_token_id"].astype("Int64").to_numpy(),
        f"{by}_layer": layer[rows],
    }
    columns["selected_layer"] = positions["selected_layer"].to_numpy(dtype=np.int64)
    columns |= {f"entropy_{by}": entropy[rows, layer[rows] - 1], "entropy_last": entropy[rows, -1]}
    table: pd.DataFrame = pd.DataFrame(columns)
    return table
