"""The numbers of section 6.1: what decoding from the valley does to tokens."""

import pandas as pd

from layerlens.analysis.decoding import REPORTED, valley_statistics
from layerlens.analysis.reported import reported_value
from layerlens.records.reader import Records
from layerlens.tables.compose import Measured, beside, of_paper, of_run


def table6_1(run: Records) -> pd.DataFrame:
    """The statistics of `analysis.valley_statistics` beside those of section 6.1; columns as in `compose.beside`.

    The paper's numbers are of Qwen3.5-35B-A3B decoded from the valley. The paper does not say on which data. Shares are
    in percent, as in the paper.
    """
    rows = []
    for row in valley_statistics(run).to_dict("records"):
        scale, unit = (100, "%") if row["unit"] == "share" else (1, row["unit"])
        value, low, high = (scale * row[name] for name in ("value", "value_low", "value_high"))
        paper = reported_value("S6.1", quantity=REPORTED.get(row["statistic"], ""))
        name = row["statistic"].replace("_", " ")
        rows.append(Measured(name, unit, value, low, high, row["n_tokens"], row["n_prompts"], paper))
    return beside(rows, of_run(run), of_paper("S6.1"))
