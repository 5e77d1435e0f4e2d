"""Loss against D at each serving precision, with D_crit marked.

A line is dashed, and the mark of a D_crit hollow, if N, D or the bits are beyond the fitted range.  Curves that
explode would flatten all others, so the axis ends a little above the loss before quantization at the left edge.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ptq_eval.laws.plan.answers import Plan
from ptq_eval.laws.plan.curves import loss_against_tokens
from ptq_eval.report.common import figures
from ptq_eval.report.common.data import Frame
from ptq_eval.report.common.numbers import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("kind", "params", "bits", "serving", "tokens", "loss", "low", "high", "beyond")
_ABOVE = 0.25
"""Share of the fall of the loss by which the axis extends above it."""


def data(plan: Plan) -> Frame:
    """Everything drawn: kind is curve (bits blank: before quantization), critical or asked."""
    return pd.DataFrame(loss_against_tokens(plan.planner), columns=list(COLUMNS))


def draw(table: Frame) -> Figure:
    """Draw what `data` returned."""
    curves = table[table["kind"] == "curve"]
    if curves.empty:
        return figures.nothing("The loss before or after quantization is not known at this N.")
    figure, axes = figures.panels(1, 1)
    ax = axes[0, 0]
    before = curves.loc[curves["bits"].isna(), "loss"]
    fall = before.max() - before.min()
    ax.set_ylim(before.min() - 0.05 * fall, before.max() + _ABOVE * fall)
    figures.log_x(ax, curves["tokens"].min(), curves["tokens"].max(), tokens=True)
    for bits, curve in curves.groupby("bits", dropna=False):
        colour = "black" if bits != bits else figures.colour(float(bits))
        line(ax, curve["tokens"], curve["loss"], curve["beyond"], colour)
        band(ax, curve["tokens"], curve["low"], curve["high"], colour)
    for _, mark in table[table["kind"] == "critical"].iterrows():
        colour = figures.colour(mark["bits"])
        inside = "white" if mark["beyond"] > 1 else colour
        ax.plot(mark["tokens"], mark["loss"], "o", color=colour, markerfacecolor=inside, zorder=4)
        if math.isfinite(mark["low"]) and math.isfinite(mark["high"]):
            ax.plot([mark["low"], mark["high"]], [mark["loss"]] * 2, color=colour, linewidth=2.4, alpha=0.5, zorder=3)
    for _, mark in table[table["kind"] == "asked"].iterrows():
        ax.axvline(mark["tokens"], color="0.6", linewidth=0.8, zorder=0)
    ax.set_xlabel("D (tokens)")
    ax.set_ylabel("loss (nats per token)")
    ax.set_title(f"N = {count(curves['params'].iloc[0])}")
    _legend(figure, table)
    return figure


def line(ax: Axes, x: Any, y: Any, beyond: Any, colour: str, width: float = 1.0) -> None:
    """A curve, dashed beyond the fitted range; solid throughout if that range is not known."""
    x, y, inside = np.asarray(x, float), np.asarray(y, float), ~(np.asarray(beyond, float) > 1)
    ax.plot(x, y, color=colour, linewidth=0.9 * width, linestyle=(0, (4, 2)))
    ax.plot(x, np.where(inside, y, np.nan), color=colour, linewidth=1.2 * width)


def band(ax: Axes, x: Any, low: Any, high: Any, colour: str) -> None:
    """The interval around a curve, if one is known."""
    low, high = np.asarray(low, float), np.asarray(high, float)
    if np.isfinite(low).any():
        ax.fill_between(np.asarray(x, float), low, high, color=colour, alpha=0.15, linewidth=0)


def beyond_handles(table: Frame) -> list[Any]:
    """Legend entries for lines within the fitted range and beyond it."""
    from matplotlib.lines import Line2D

    handles: list[Any] = []
    if (table["beyond"] <= 1).any():
        handles.append(Line2D([], [], color="grey", linewidth=1.2, label="within the fitted range"))
    if (table["beyond"] > 1).any():
        handles.append(
            Line2D([], [], color="grey", linewidth=0.9, linestyle=(0, (4, 2)), label="beyond the fitted range")
        )
    return handles


def _legend(figure: Figure, table: Frame) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    curves, kinds = table[table["kind"] == "curve"], set(table["kind"])
    handles: list[Any] = [Line2D([], [], color="black", label="before quantization")]
    served = curves.dropna(subset="bits").drop_duplicates("bits").sort_values("bits")
    for bits, label in zip(served["bits"], served["serving"]):
        handles.append(Line2D([], [], color=figures.colour(bits), label=label))
    handles += beyond_handles(curves)
    if "critical" in kinds:
        turns = table[table["kind"] == "critical"]
        label = "D_crit (hollow: beyond the data)" if (turns["beyond"] > 1).any() else "D_crit"
        handles.append(Line2D([], [], color="grey", marker="o", linestyle="none", label=label))
    if np.isfinite(curves["low"]).any():
        handles.append(Patch(color="grey", alpha=0.2, linewidth=0, label="interval"))
    if "asked" in kinds:
        handles.append(Line2D([], [], color="0.6", linewidth=0.8, label="D asked about"))
    figures.legend(figure, handles, most=4, handlelength=1.8)
