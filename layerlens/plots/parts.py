"""Which half of a layer raises or lowers the entropy: attention, the MLP, or both."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layerlens.analysis import parts_by_layer, perturbation_parts
from layerlens.analysis.parts import GROUPS
from layerlens.plots import style
from layerlens.records.reader import Records

_HALVES = {"attention": ("attention", style.ATTENTION, "-"), "mlp": ("MLP", style.MLP, (0, (3, 1.2)))}
_WHOLE = ("change", "sum of the two", style.BAR)
_HATCHED: dict[str, dict[str, Any]] = {
    "mlp": {"facecolor": style.MLP, "edgecolor": "white", "hatch": "/////", "linewidth": 0}
}
"""What tells bars apart in grey, in which attention and MLP are the same."""


def parts_table(run: Records) -> pd.DataFrame:
    """One row per group and layer with everything the figure of parts draws; columns as in `analysis.parts_by_layer`.

    Raises:
        RunError: as `analysis.perturbation_parts`.
    """
    perturbation_parts(run)  # refuses a run whose last layer, which half of the figure shows, has no halves
    return parts_by_layer(run)


def draw_parts_by_layer(table: pd.DataFrame, ax: Axes) -> Axes:
    """The axes with what attention and MLP of each layer do to the mean entropy of the perturbed tokens."""
    rows = table[table["group"] == "perturbed"]
    n_tokens = int(rows["n_tokens"].iloc[-1])
    ax.set_title(f"{n_tokens:,} perturbed token{'' if n_tokens == 1 else 's'}, layer by layer", loc="left")
    style.layer_axis(ax, len(rows))
    style.band_full_attention(ax, list(rows["kind"]))
    ax.set_ylabel("change of entropy (nats)")
    if not n_tokens:
        ax.set_yticks([])
        ax.text(0.5, 0.5, "no such token", transform=ax.transAxes, ha="center", va="center", color=style.GREY)
        return ax
    ax.axhline(0, color=style.GREY, linewidth=0.6, zorder=1)
    handles: list[Any] = []
    for name, (label, colour, dashes) in _HALVES.items():
        handles += ax.plot(rows["layer"], rows[name], label=label, color=colour, linestyle=dashes, zorder=3)
        if (rows[f"{name}_high"] > rows[f"{name}_low"]).any():
            band: dict[str, Any] = {"color": colour, "alpha": 0.3, "linewidth": 0, "zorder": 2}
            ax.fill_between(rows["layer"], rows[f"{name}_low"], rows[f"{name}_high"], **band)
    if style.mixes_kinds(list(rows["kind"])):
        handles.append(style.full_attention_key())
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.47, -0.2), ncols=len(handles))
    return ax


def draw_last_parts(table: pd.DataFrame, ax: Axes) -> Axes:
    """The axes with the last layer's parts as bars with 95 % intervals, by group. The title says which raise it."""
    last = table[table["layer"] == table["layer"].max()].set_index("group").loc[list(GROUPS)]
    bars = [*((name, label, colour) for name, (label, colour, _) in _HALVES.items()), _WHOLE]
    places = np.arange(len(GROUPS))
    for shift, (name, label, colour) in zip((-0.27, 0.0, 0.27), bars, strict=True):
        look = {"zorder": 2} | _HATCHED.get(name, {"color": colour})
        ax.bar(places + shift, last[name].fillna(0), width=0.25, label=label, **look)
        _whiskers(places + shift, last[name], last[f"{name}_low"], last[f"{name}_high"], ax)
    ax.axhline(0, color=style.GREY, linewidth=0.6, zorder=1)
    ax.set_xticks(places, [f"{group}\n{n:,}" for group, n in last["n_tokens"].items()])
    ax.set_ylabel(f"change in layer {table['layer'].max()} (nats)")
    ax.set_title(_who_raises(last.loc["perturbed"]), loc="left")
    ax.legend(loc="upper center", bbox_to_anchor=(0.47, -0.24), ncols=3)
    return ax


def figure_parts(run: Records, width: str = "one") -> tuple[Figure, pd.DataFrame]:
    """What attention and MLP do to the entropy, by layer (a) and in the last (b), and the table; see `parts_table`.

    The width is "one" or "two" columns of a page.
    """
    table = parts_table(run)
    with style.look():
        figure, panels = style.page(width, 2, 2.3)
        draw_parts_by_layer(table, panels[0])
        draw_last_parts(table, panels[1])
        style.letter_titles(*panels)
        style.name_lens(figure, run.lens)
    return figure, table


def _whiskers(x: Any, value: Any, low: Any, high: Any, ax: Axes) -> None:
    wide = (high > low).to_numpy()
    if wide.any():
        ends = [(value - low)[wide], (high - value)[wide]]
        ax.errorbar(x[wide], value[wide], yerr=ends, fmt="none", ecolor="0.25", elinewidth=0.6, zorder=3)


def _who_raises(perturbed: Any) -> str:
    if not perturbed["n_tokens"]:
        return "No token is perturbed"
    shares = {"attention": "attention_alone", "MLP": "mlp_alone", "both": "both"}
    return "Raised by " + ", ".join(f"{name} {100 * perturbed[share]:.0f} %" for name, share in shares.items())
