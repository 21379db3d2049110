"""The tokens of a run as a person reads them."""

import numpy as np
import pandas as pd

from layerlens.records.reader import Records


def by_token(run: Records) -> pd.DataFrame:
    """One row per traced position, in the order of `run.positions`, without lists of values per layer.

    Columns: prompt_id; position; token and next_token, their texts, None where nothing followed; is_generated; entropy
    of the last layer, in nats; kept_from, the earliest layer from which on every layer has the last one's first choice;
    valley_layer; selected_layer; perturbed.
    """
    positions, top = run.positions, run.layers("top_token_id")
    agrees = np.logical_and.accumulate((top == top[:, -1:])[:, ::-1], axis=1)
    followed = positions["next_token_id"].notna()
    following = pd.Series(None, index=positions.index, dtype=object)
    following[followed] = run.text_of(positions.loc[followed, "next_token_id"].astype(int))
    table: pd.DataFrame = pd.DataFrame(
        {
            "prompt_id": positions["prompt_id"],
            "position": positions["position"],
            "token": run.text_of(positions["token_id"]),
            "next_token": following,
            "is_generated": positions["is_generated"],
            "entropy": run.layers("entropy")[:, -1],
            "kept_from": run.n_layers + 1 - agrees.sum(axis=1),
            **{name: positions[name] for name in ("valley_layer", "selected_layer", "perturbed")},
        }
    )
    return table
