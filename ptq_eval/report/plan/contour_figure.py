"""Iso-loss contours over serving bits and D/N at one N, with the D_crit beyond which more data harms.

Along a contour the served loss is the same: it shows how many bits are worth how many tokens.  Above the line of
D_crit contours bend back, and more tokens need more bits for the same loss.

All lines are dashed where N, D or the bits are beyond the data.  The line of D_crit shows what the table of the plan
shows: it ends where the fits give no D_crit, with the reason and the largest factor beyond the data in the legend.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ptq_eval.laws.plan.answers import Plan
from ptq_eval.laws.plan.curves import loss_over_bits_and_ratio
from ptq_eval.report.common import figures
from ptq_eval.report.common.data import Frame
from ptq_eval.report.common.numbers import count, short
from ptq_eval.report.plan.loss_figure import band, line
from ptq_eval.report.plan.reasons import reasons

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("kind", "params", "bits", "ratio", "low", "high", "loss", "beyond", "why_not")
LEVELS = 10
_COLOUR, _DASHED = "#2A788E", (0, (4, 2))
_LABELS_AT = 0.85
"""Share of the axis of bits."""
_LINE = 0.13
"""Inches that a further line of a legend's entry takes."""


def data(plan: Plan) -> Frame:
    """Everything drawn: kind is grid, critical or fitted (two corners of the fitted range)."""
    rows = loss_over_bits_and_ratio(plan.planner)
    return pd.DataFrame(
        [{**row, "why_not": reasons(row.get("why_not", ())) or None} for row in rows], columns=list(COLUMNS)
    )


def levels(loss: np.ndarray) -> np.ndarray:
    """Losses to draw contours at: closer to each other near the lowest, where the contours are far apart."""
    low, high = float(loss.min()), min(float(np.quantile(loss, 0.85)), float(loss[:, -1].max()))
    steps = np.geomspace(1, 20, LEVELS + 1)[1:]
    found = low + (high - low) * (steps - 1) / (steps[-1] - 1)
    return np.unique([float(f"{level:.4g}") for level in found])


def places(surface: Frame, drawn: np.ndarray) -> list[tuple[float, float]]:
    """Where contours are labelled, (bits, D/N): at the right, where they are level and do not overlap."""
    column = int(_LABELS_AT * (surface.shape[1] - 1))
    loss, ratios = surface.iloc[:, column].to_numpy(), surface.index.to_numpy()
    first = [int(np.argmax(loss <= level)) for level in drawn if (loss <= level).any()]
    return [(float(surface.columns[column]), float(ratios[row])) for row in first]


def draw(table: Frame) -> Figure:
    """Draw what `data` returned."""
    from matplotlib.ticker import FuncFormatter

    grid = table[table["kind"] == "grid"]
    if grid.empty:
        return figures.nothing("The loss before or after quantization is not known at this N.")
    figure, axes = figures.panels(1, 1)
    figure.set_size_inches(4.2, 3.6)
    ax = axes[0, 0]
    surface = grid.pivot(index="ratio", columns="bits", values="loss")
    ax.set_yscale("log")
    handles = _contours(ax, surface, table)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    ax.set_xlim(surface.columns.min(), surface.columns.max())
    ax.set_ylim(surface.index.min(), surface.index.max())
    handles += _turns(ax, table[table["kind"] == "critical"].sort_values("bits"), surface)
    ax.set_xlabel("serving precision (bits)")
    ax.set_ylabel("D/N (tokens per parameter)")
    ax.set_title(f"N = {count(grid['params'].iloc[0])}")
    figures.legend(figure, handles, most=2, handlelength=1.8)
    lines = sum(len(textwrap.wrap(str(handle.get_label()), figures.LABEL_WIDTH)) - 1 for handle in handles)
    figure.set_figheight(figure.get_figheight() + _LINE * lines)
    return figure


def _contours(ax: Axes, surface: Frame, table: Frame) -> list[Any]:
    """Draw and label the contours, dashed beyond the data; legend entries for their parts within and beyond."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    what, bits, ratios, loss = (
        "loss after quantization (nats per token)",
        surface.columns,
        surface.index,
        surface.values,
    )
    options: dict[str, Any] = {"levels": levels(loss), "colors": _COLOUR, "linewidths": 0.8}
    unknown = table.loc[table["kind"] == "grid", "beyond"].isna().all()
    drawn = ax.contour(bits, ratios, loss, linestyles="solid" if unknown else [_DASHED], **options)
    corners, handles = table[table["kind"] == "fitted"], []
    if unknown or len(corners) == 2:
        known = " (the range of the data is not known)" if unknown else ""
        handles.append(Line2D([], [], color=_COLOUR, linewidth=0.9, label=what + known))
    if len(corners) == 2:
        left, right = np.clip(corners["bits"], bits.min(), bits.max())
        low, high = np.clip(corners["ratio"], ratios.min(), ratios.max())
        inside = Rectangle((left, low), right - left, high - low, transform=ax.transData)
        ax.contour(bits, ratios, loss, linestyles="solid", **options).set_clip_path(inside)
    if not unknown:
        label = "the same, beyond the data" if handles else f"{what}, beyond the data"
        handles.append(Line2D([], [], color=_COLOUR, linewidth=0.9, linestyle=_DASHED, label=label))
    for text in ax.clabel(
        drawn, fmt=_four_digits, fontsize=6, inline=False, manual=places(surface, np.asarray(drawn.levels))
    ):
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6})
    return handles


def _four_digits(value: float) -> str:
    return f"{value:.4g}"


def _turns(ax: Axes, turn: Frame, surface: Frame) -> list[Any]:
    """Draw D_crit; legend entries for its parts within and beyond the data, and for why it is not given elsewhere."""
    from matplotlib.lines import Line2D

    line(ax, turn["bits"], turn["ratio"], turn["beyond"], "black")
    band(ax, turn["bits"], turn["low"], turn["high"], "black")
    shown = turn[turn["ratio"].between(surface.index.min(), surface.index.max())]
    handles: list[Any] = []
    if not (shown["beyond"] > 1).all():
        where = ", within the data" if shown["beyond"].notna().any() else " (the range of the data is not known)"
        handles.append(Line2D([], [], color="black", linewidth=1.2, label=f"D_crit{where}"))
    if len(far := shown.loc[shown["beyond"] > 1, "beyond"]):
        label = f"D_crit, beyond the data by up to {short(far.max())}×"
        handles.append(Line2D([], [], color="black", linewidth=0.9, linestyle=_DASHED, label=label))
    for why, refused in turn.dropna(subset="why_not").groupby("why_not", sort=False):
        ends = " to ".join(dict.fromkeys(f"{bits:.3g}" for bits in (refused["bits"].min(), refused["bits"].max())))
        handles.append(Line2D([], [], linestyle="none", label=f"no D_crit at {ends} bits: {why}"))
    return handles
