"""What drafts with blocks left out are worth, drawn from a report of `layerlens bench speculative`."""

from collections.abc import Iterator, Mapping
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from layerlens.plots import style

_HEIGHT = 2.3
_LEAST_SIZE, _SIZE_PER_ROUND = 6.0, 0.6


def figures(
    report: Mapping[str, Any], pictures: Mapping[str, pd.DataFrame], width: str = "one"
) -> Iterator[tuple[str, Figure, pd.DataFrame]]:
    """The stem, the figure and the table drawn, of everything that the report has measurements for.

    Args:
        report: from `measure_speculative`.
        pictures: the last proposal of each policy that compares confidences.
        width: "one" or "two" columns of a page.
    """
    speeds = pd.DataFrame(report["table"])
    yield "speed_up", *_drawn(width, draw_speed_ups, speeds)
    tables = [pd.DataFrame(of_policy).assign(policy=name) for name, of_policy in report["sets"].items() if of_policy]
    sets = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    if not sets.empty:
        yield "acceptance", *_drawn(width, draw_acceptance, sets)
        tried = sets.dropna(subset=["lambda", "speed_up"])
        if tried["lambda"].nunique() > 1:
            yield "lambda", *_drawn(width, draw_lambda, tried)
    for name, picture in pictures.items():
        yield f"{name}_confidence", *_drawn(width, draw_confidence, picture)
    if "blocks" in report:
        blocks = pd.DataFrame(report["blocks"])
        rho = report["rank_correlations"]["one_minus_cosine"]

        def draw(table: pd.DataFrame, ax: Axes) -> None:
            draw_blocks(table, ax, rho)

        yield "blocks", *_drawn(width, draw, blocks)


def _drawn(width: str, draw: Any, table: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    with style.look():
        figure, [ax] = style.page("one", 1, _HEIGHT)
        figure.set_figwidth(style.inches(width))
        draw(table, ax)
        handles, _ = ax.get_legend_handles_labels()
        if handles:
            figure.legend(loc="outside lower center", ncols=min(len(handles), 4), handletextpad=0.3)
    return figure, table


def draw_speed_ups(table: pd.DataFrame, ax: Axes) -> Axes:
    """The axes with the speed-up of each way over plain decoding, with its interval over prompts."""
    shown = table[~table["way"].isin(["plain", "generate"])].iloc[::-1]
    places = np.arange(len(shown))
    for name, label, look, shift in (
        ("speed_up", "search included", style.LOOKS[0], 0.14),
        ("speed_up_after_search", "after the search", style.LOOKS[1], -0.14),
    ):
        if name not in shown or shown[name].isna().all():
            continue
        ends = [shown[name] - shown[f"{name}_low"], shown[f"{name}_high"] - shown[name]]
        ax.errorbar(
            shown[name], places + shift, xerr=np.array(ends), linestyle="none", label=label, markersize=3.5, **look
        )
    ax.axvline(1.0, color=style.GREY, linestyle="--", linewidth=0.8, zorder=1)
    ax.set_yticks(places, [way.replace("_", " ") for way in shown["way"]])
    ax.set_ylim(-0.6, len(shown) - 0.4)
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(left=0)
    ax.set_xlabel("speed-up over plain decoding, [95 %]")
    return ax


def draw_acceptance(table: pd.DataFrame, ax: Axes) -> Axes:
    """The axes with the share of drafted tokens that were accepted, by what each set left out of the model."""
    for (name, of_policy), look in zip(table.groupby("policy", sort=False), cycle(style.LOOKS), strict=False):
        sizes = _LEAST_SIZE + _SIZE_PER_ROUND * of_policy["rounds"].clip(upper=100)
        ax.scatter(100 * of_policy["share"], of_policy["acceptance"], s=sizes, label=str(name), alpha=0.7, **look)
    ax.set_xlabel("left out, % of attention modules and MLPs")
    ax.set_ylabel("accepted, of drafted tokens")
    ax.set_ylim(-0.03, 1.03)
    ax.set_xlim(0, max(50.0, 105 * table["share"].max()))
    return ax


def draw_lambda(table: pd.DataFrame, ax: Axes) -> Axes:
    """The axes with the speed-up of each set that ConfLayers proposed, by the lambda of the proposal."""
    for (name, of_policy), look in zip(table.groupby("policy", sort=False), cycle(style.LOOKS), strict=False):
        sizes = _LEAST_SIZE + _SIZE_PER_ROUND * of_policy["rounds"].clip(upper=100)
        ax.scatter(of_policy["lambda"], of_policy["speed_up"], s=sizes, label=str(name), alpha=0.7, **look)
    ax.axhline(1.0, color=style.GREY, linestyle="--", linewidth=0.8, zorder=1)
    ax.set_xlabel("lambda of the proposal")
    ax.set_ylabel("speed-up without the search")
    ax.set_ylim(bottom=0)
    return ax


def draw_confidence(picture: pd.DataFrame, ax: Axes) -> Axes:
    """The axes with the confidence of each candidate, the mean of its neighbours, and what was left out."""
    blocks = picture["block"]
    for block in blocks[picture["is_skipped"]]:
        ax.axvspan(block - 0.5, block + 0.5, color=style.FULL_ATTENTION, linewidth=0, zorder=0)
    reach = picture["window"] // 2
    ax.hlines(picture["local_mean"], blocks - reach, blocks + reach, color=style.BAR, linewidth=0.8, zorder=1)
    ax.plot(blocks, picture["local_mean"], color="#0072B2", linestyle="--", label="mean of the neighbours", zorder=2)
    ax.plot(blocks, picture["confidence"], color="black", marker="o", markersize=2.5, label="confidence", zorder=3)
    ax.plot([], [], color=style.BAR, linewidth=0.8, label="window")
    ax.fill_between([], [], [], color=style.FULL_ATTENTION, label="left out")
    ax.set_xlabel("block, counted from 0")
    ax.set_ylabel("confidence, attention + MLP")
    ax.set_xlim(blocks.min() - 0.6, blocks.max() + 0.6)
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    return ax


def draw_blocks(table: pd.DataFrame, ax: Axes, rho: Mapping[str, Any]) -> Axes:
    """The axes with the acceptance of a draft without one block, by how far the block turns the stream."""
    ends = [table["acceptance"] - table["acceptance_low"], table["acceptance_high"] - table["acceptance"]]
    look: dict[str, Any] = {"color": "black", "marker": "o", "markersize": 2.5, "elinewidth": 0.6}
    ax.errorbar(table["one_minus_cosine"], table["acceptance"], yerr=np.array(ends), linestyle="none", **look)
    lowest = table.nsmallest(3, "acceptance")
    for _, row in lowest.iterrows():
        place = (row["one_minus_cosine"], row["acceptance"])
        ax.annotate(f"{row['block']:.0f}", place, xytext=(3, 2), textcoords="offset points", fontsize=6)
    if (table["one_minus_cosine"] > 0).all():
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))  # exponents would be too small to read
        ax.xaxis.set_minor_formatter(NullFormatter())
        if np.log10(table["one_minus_cosine"].max() / table["one_minus_cosine"].min()) < 1:
            ax.set_xscale("linear")
    ax.set_xlabel("1 − I/O cosine of the block")
    ax.set_ylabel("accepted without the block")
    ax.set_ylim(top=1.02)
    text = f"rank correlation {rho['rho']:.2f} [{rho['low']:.2f}, {rho['high']:.2f}], {rho['n_blocks']} blocks"
    ax.set_title(text.replace("-", "−"), loc="left")
    return ax
