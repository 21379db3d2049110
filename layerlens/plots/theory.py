"""What the theory of valley decoding predicts as noise grows (section 3.3 of arXiv 2606.21906), as one figure."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layerlens.analysis.theory import (
    DRAWS,
    PAPER,
    SEED,
    WINDOW,
    Parameters,
    critical_rise,
    dominance_table,
    first_step,
    theorem_table,
)
from layerlens.plots import style

EARLIER = 3  # layers by which the second curve's V* lies before the first's

_COLOURS = {"last": style.GREY, "algorithm": style.UNPERTURBED, "theorem": style.PERTURBED, "argmin": style.MLP}
_NAMES = {"last": "last layer", "algorithm": "Algorithm 1", "theorem": "Theorem 1", "argmin": "arg-min"}
_DASHES: dict[str, Any] = {"last": (0, (4, 1.5)), "algorithm": "-", "theorem": (0, (3, 1.2)), "argmin": (0, (1, 1))}


def theory_table(
    parameters: Parameters = PAPER,
    *,
    noises: Sequence[float] = tuple(np.geomspace(0.03, 10, 26)),
    rises: Sequence[float] = tuple(np.arange(0, 0.41, 0.05)),
    descents: Sequence[float] = (0.1, 0.5, 1.0, 1.5, 2.0, 2.5),
    n_draws: int = DRAWS,
    seed: int = SEED,
) -> pd.DataFrame:
    """Everything that `figure_theory` draws, a row per point.

    Columns: panel; rule; valley, the V* of the curve; window; noise, the sd at L in nats; descent and rise, in units of
    the noise; value with low and high (95 % over draws); expected, the value without simulation if there is one;
    n_draws. Columns that a panel does not use are NaN. The panels are

    - "inside": the share of draws whose layer is in [V_onset, V*], by Algorithm 1 and by Theorem 1, with the window and
      without, for the curve given and for one that differs by a V* three layers earlier. Expected is the probability of
      the first step, where V* is L-1.
    - "loss": the mean loss in nats of the last layer, Algorithm 1 and the arg-min, in the window.
    - "dominance": the mean gain of walking back over staying at L, in units of the noise; see `dominance_table`.
    - "critical": the least rise at which that gain is positive, by descent; see `critical_rise`.

    Args:
        parameters: the curve; its V* is the later one.
        noises, rises, descents: the values that are tried.
        n_draws, seed: of the simulations.

    Raises:
        OptionError: the curve has no room for an earlier V*, or a value is out of range.
    """
    shares = []
    for curve in (parameters, _earlier(parameters)):
        at_noises = theorem_table(curve, noises, n_draws=n_draws, seed=seed).assign(valley=curve.valley)
        shares.append(at_noises)
    both = pd.concat(shares, ignore_index=True)
    inside = _points(both[both["rule"].isin(["algorithm", "theorem"])], "inside")
    closed = (inside["rule"] == "algorithm") & (inside["valley"] == parameters.n_layers - 1)
    inside["expected"] = inside["noise"].map(lambda noise: first_step(replace(parameters, noise=noise))).where(closed)
    chosen = both["rule"].isin(["last", "algorithm", "argmin"]) & (both["window"] == WINDOW)
    loss = _points(both[chosen & (both["valley"] == parameters.valley)], "loss")
    cells = dominance_table(rises, descents, n_draws=n_draws, seed=seed)
    gain = _points(cells.rename(columns={"gain_expected": "expected"}), "gain").assign(panel="dominance", window=WINDOW)
    finer = np.linspace(0, max(descents) + 0.25, 45)
    critical = pd.DataFrame({"panel": "critical", "window": WINDOW, "descent": finer})
    critical["value"] = [critical_rise(descent) for descent in finer]
    table: pd.DataFrame = pd.concat([inside, loss, gain, critical], ignore_index=True)[list(_COLUMNS)]
    return table


def draw_inside(table: pd.DataFrame, ax: Axes) -> Axes:
    """The axes with the share of draws in [V_onset, V*] against noise; `table` holds the panel "inside" only."""
    latest = table["valley"].max()
    for (rule, valley), points in table.groupby(["rule", "valley"], sort=False):
        windowed, whole = points[points["window"] == WINDOW], points[points["window"] != WINDOW]
        look: dict[str, Any] = {"color": _COLOURS[str(rule)]}
        line = {"linestyle": _DASHES[str(rule)], "linewidth": 1.4 if valley == latest else 0.8}
        label = f"{_NAMES[str(rule)]}, V* = {valley:.0f}"
        ax.plot(windowed["noise"], windowed["value"], label=label, **line, **look)
        ax.fill_between(windowed["noise"], windowed["low"], windowed["high"], alpha=0.3, linewidth=0, **look)
        ax.plot(whole["noise"][::3], whole["value"][::3], "o", markersize=2.2, markerfacecolor="white", **look)
    closed = table[(table["window"] == WINDOW) & table["expected"].notna()]
    if len(closed):
        key = r"$\Phi(d\,/\,\sigma\sqrt{2})$"
        ax.plot(closed["noise"], closed["expected"], "+", color="black", markersize=4, label=key, zorder=3)
    ax.plot([], [], "o", markersize=2.2, markerfacecolor="white", color=style.GREY, label="without a window")
    ax.set_ylim(0, 1.03)
    ax.set_ylabel("share in [V_onset, V*]")
    return _noise_axis(ax)


def draw_loss(table: pd.DataFrame, ax: Axes) -> Axes:
    """The axes with the mean loss against noise, one line per rule; `table` holds the panel "loss" only."""
    for rule, points in table.groupby("rule", sort=False):
        look: dict[str, Any] = {"color": _COLOURS[str(rule)]}
        ax.plot(points["noise"], points["value"], linestyle=_DASHES[str(rule)], label=_NAMES[str(rule)], **look)
        ax.fill_between(points["noise"], points["low"], points["high"], alpha=0.3, linewidth=0, **look)
    stays = table["value"][table["rule"] == "last"].max()
    ax.set_ylim(0, 3 * stays if stays > 0 else None)  # the arg-min's loss leaves any axis on which the others differ
    ax.set_ylabel("mean loss (nats)")
    where = f"V* = {table['valley'].iloc[0]:.0f}, window of {WINDOW}"
    ax.text(0.02, 0.97, where, transform=ax.transAxes, va="top", color=style.GREY)
    return _noise_axis(ax)


def draw_dominance(table: pd.DataFrame, ax: Axes) -> Axes:
    """The axes with the region of descent and rise where walking back beats staying at the last layer.

    `table` holds the panels "dominance" and "critical". A point is a simulation: filled where the interval of the mean
    gain lies above 0, crossed where it lies below, a dot where it holds 0.
    """
    critical, cells = (table[table["panel"] == panel] for panel in ("critical", "dominance"))
    top = 1.08 * float(cells["rise"].max())
    x, y = critical["descent"], critical["value"]
    ax.fill_between(x, y, top, color=style.BAR, alpha=0.45, linewidth=0)
    ax.fill_between(x, 0, y, facecolor="white", edgecolor=style.PERTURBED, hatch="////", linewidth=0, alpha=0.6)
    ax.plot(x, y, color="black", zorder=3)
    marks: dict[str, tuple[pd.Series[bool], dict[str, Any]]] = {
        "walking back gains": (cells["low"] > 0, {"marker": "o", "markersize": 3, "color": style.UNPERTURBED}),
        "walking back loses": (cells["high"] < 0, {"marker": "x", "markersize": 4, "color": "black"}),
        "undecided": ((cells["low"] <= 0) & (cells["high"] >= 0), {"marker": ".", "markersize": 3, "color": "black"}),
    }
    for label, (chosen, look) in marks.items():
        points = cells[chosen]
        drawn = ax.plot(points["descent"], points["rise"], linestyle="", label=label, zorder=4, clip_on=False, **look)
        drawn[0].set_visible(bool(len(points)))
    ax.set_xlim(0, float(x.max()))
    ax.set_ylim(0, top)
    ax.set_xlabel(r"descent per layer / noise $s\,/\,\sigma$")
    ax.set_ylabel(r"late rise / noise $d\,/\,\sigma$")
    return _legend(ax, 2)


def figure_theory(parameters: Parameters = PAPER, **options: Any) -> tuple[Figure, pd.DataFrame]:
    """The share inside (a), the loss (b), where walking back pays (c), and the table drawn; see `theory_table`."""
    table = theory_table(parameters, **options)
    with style.look():
        figure, panels = style.page("one", 3, 2.2)
        draw_inside(table[table["panel"] == "inside"], panels[0])
        draw_loss(table[table["panel"] == "loss"], panels[1])
        draw_dominance(table[table["panel"].isin(["dominance", "critical"])], panels[2])
        for ax, letter in zip(panels, ("(a)", "(b)", "(c)"), strict=True):
            ax.set_ylabel(f"{letter} {ax.get_ylabel()}")
    return figure, table


_COLUMNS = (
    *("panel", "rule", "valley", "window", "noise", "descent", "rise"),
    *("value", "low", "high", "expected", "n_draws"),
)


def _earlier(parameters: Parameters) -> Parameters:
    """The same descent over as many layers, ending earlier. The same rise takes the layers that are left."""
    return replace(parameters, onset=parameters.onset - EARLIER, valley=parameters.valley - EARLIER)


def _points(table: pd.DataFrame, measure: str) -> pd.DataFrame:
    names = {measure: "value", f"{measure}_low": "low", f"{measure}_high": "high"}
    kept = [name for name in _COLUMNS if name in table.columns]
    points: pd.DataFrame = table[[*kept, *names]].rename(columns=names).assign(panel=measure)
    return points


def _noise_axis(ax: Axes) -> Axes:
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel(r"noise $\sigma$ (nats)")
    return _legend(ax, 2 if len(ax.get_legend_handles_labels()[0]) > 4 else 3)


def _legend(ax: Axes, columns: int) -> Axes:
    ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns)
    return ax
