"""Table 5: what decoding from the valley costs."""

import pandas as pd

from layerlens.analysis.overhead import PAPER_CONDITIONS, overhead
from layerlens.analysis.reported import reported_value
from layerlens.records.reader import Records
from layerlens.tables.compose import Measured, beside, of_paper, of_run

_UNITS = {
    "mflops": ("MFLOPs per token", "MFLOPs"),
    "percent_of_forward": ("percent of forward pass", "% of forward"),
    "percent_of_last": ("", "% of last"),
}
"""What the paper calls each column, and its unit: the paper gives no share of a token from the last layer."""


def table5(run: Records) -> pd.DataFrame:
    """The costs of `analysis.overhead` beside the paper's; columns as in `compose.beside`.

    The paper counts a multiply-add as one operation; here it is two. Its latency was measured end to end in a server.
    No run measures this, so the cell stays empty (`layerlens bench decode` times both ways on one machine). "% of
    forward" refers to the forward pass without unembedding, as in the paper. "% of last" refers to a token decoded from
    the last layer, which pays for one unembedding as well.
    """
    costs = overhead(run)
    rows = []
    for row in costs.to_dict("records"):
        condition = PAPER_CONDITIONS.get(row["name"], "")
        for column, (quantity, unit) in _UNITS.items():
            if row["name"] == "forward" and column != "mflops":
                continue
            bounds = (row[f"{column}_low"], row[f"{column}_high"])
            in_paper = reported_value("5", condition=condition, quantity=quantity) if quantity else float("nan")
            counts = (row["n_tokens"], row["n_prompts"])
            rows.append(Measured(row["what"], unit, row[column], *bounds, *counts, in_paper))
    latency = "latency increase percent, upper bound"
    rows.append(Measured("latency added, end to end", "%", reported=reported_value("5", quantity=latency)))
    return beside(rows, of_run(run), of_paper("5"))
