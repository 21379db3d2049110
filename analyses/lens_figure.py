"""Draw what the last layer does to the entropy under each lens, for several models, from committed tables.

python analyses/lens_figure.py NAME=FOLDER ... OUT_DIR

Each FOLDER holds the lenses.csv of a model, as analyses/lenses.py writes it, and temperature-LENS.csv where
analyses/temperature.py wrote one. Writes lenses.png, .pdf and .csv, the rows that are drawn.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lenses import LENSES
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layerlens.errors import LayerlensError, RunError
from layerlens.plots import save, style

PANELS = {
    "perturbed tokens": "perturbed tokens (%)",
    "entropy change at L, perturbed": "their rise (nats)",
    "entropy change at L, all": "change of all tokens (nats)",
}
"""The rows of lenses.csv that are drawn, and what their axes say."""
CALIBRATED = ", at its temperature"
"""The ending of the row names of analyses/temperature.py."""
GAP = f"KL(L || L-1), all{CALIBRATED}"
"""By this much the entropy falls under a lens that is as sure as it should be; drawn beside the change of all
tokens."""

_MODELS = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^")]


def drawn_rows(folders: dict[str, Path]) -> pd.DataFrame:
    """The rows of each model's lenses.csv that the figure draws, with the model's name before them."""
    frames = []
    for model, folder in folders.items():
        try:
            rows = pd.read_csv(folder / "lenses.csv")
        except OSError as error:
            raise RunError(f"{folder / 'lenses.csv'} cannot be read ({error.strerror}); make it first") from error
        for lens in LENSES:
            calibrated = folder / f"temperature-{lens}.csv"
            if calibrated.exists():
                rows = pd.concat([rows, pd.read_csv(calibrated).assign(lens=lens)])
        rows = rows[rows["quantity"].isin([*PANELS, GAP, *(f"{name}{CALIBRATED}" for name in PANELS)])]
        frames.append(rows.assign(model=model)[["model", *rows.columns]])
    table: pd.DataFrame = pd.concat(frames, ignore_index=True)
    return table


def draw(table: pd.DataFrame) -> Figure:
    """Three panels, the lenses along each, one sign for each model, with 95 % intervals."""
    lenses = [lens for lens in LENSES if lens in set(table["lens"])]
    models = list(dict.fromkeys(table["model"]))
    with style.look():
        figure = Figure(figsize=(style.inches("two"), 2.4), layout="constrained")
        axes = figure.subplots(1, len(PANELS))
        for ax, (quantity, said), letter in zip(axes, PANELS.items(), "abc", strict=True):
            for place, model in enumerate(models):
                of_model = table[table["model"] == model].set_index(["quantity", "lens"])
                shift = 0.26 * (place - (len(models) - 1) / 2)
                colour, sign = _MODELS[place]
                look: dict[str, Any] = {"color": colour, "fmt": sign, "markersize": 3.5, "elinewidth": 0.8}
                _points(of_model, quantity, lenses, shift - 0.05, ax, label=model, **look)
                look |= {"markerfacecolor": "white"}
                _points(of_model, f"{quantity}{CALIBRATED}", lenses, shift + 0.05, ax, **look)
                if quantity == "entropy change at L, all" and GAP in of_model.index:
                    less = [-of_model["measured"].get((GAP, lens), np.nan) for lens in lenses]
                    ax.plot(np.arange(len(lenses)) + shift, less, "_", color=colour, markersize=9, zorder=2)
            ax.set_xticks(range(len(lenses)), lenses)
            ax.set_xlim(-0.6, len(lenses) - 0.4)
            ax.set_title(f"({letter}) {said}", loc="left")
            ax.axhline(0, color=style.GREY, linewidth=0.6, zorder=1)
        handles = axes[0].get_legend_handles_labels()[0]
        if table["quantity"].str.endswith(CALIBRATED).any():
            handles += axes[0].plot([], [], "o", color=style.GREY, markerfacecolor="white", label="at its temperature")
        if GAP in set(table["quantity"]):
            handles += axes[-1].plot([], [], "_", color=style.GREY, markersize=9, label="(c) −KL(L ‖ L−1) there")
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _points(rows: pd.DataFrame, quantity: str, lenses: list[str], shift: float, ax: Axes, **look: Any) -> None:
    there = [lens for lens in lenses if (quantity, lens) in rows.index]
    values, low, high = (
        np.array([rows.loc[(quantity, lens), name] for lens in there]) for name in ("measured", "low", "high")
    )
    places = np.array([lenses.index(lens) for lens in there]) + shift
    ax.errorbar(places, values, yerr=[values - low, high - values], zorder=3, **look)


parser = argparse.ArgumentParser(description="Draw what the last layer does by lens, several models together.")
parser.add_argument("models", nargs="+", metavar="NAME=FOLDER", help="a model's name and where its lenses.csv is")
parser.add_argument("out_dir", type=Path, help="where lenses.png, .pdf and .csv go")

if __name__ == "__main__":
    options = parser.parse_args()
    try:
        rows = drawn_rows({name: Path(folder) for name, _, folder in (one.partition("=") for one in options.models)})
        paths = save(draw(rows), rows, options.out_dir, "lenses")
    except LayerlensError as error:
        parser.error(str(error))
    print(*paths, sep="\n")
