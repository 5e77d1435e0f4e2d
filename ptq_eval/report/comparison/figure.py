"""Laws ranked: held-out error on the left, AICc on the right, one row of panels per comparison, the best law on top.

Small hollow marks, a little above the line of their law, are the kinds of held-out points; the filled one is the mean.
Bars are standard errors of the difference from the best law, so the best has none.  The grey band of AICc is within 2
of the lowest.  All panels of a column have one axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ptq_eval.laws.compare.ranking import AICC_ALIKE
from ptq_eval.report.common import figures
from ptq_eval.report.common.data import Frame
from ptq_eval.report.common.numbers import number
from ptq_eval.report.comparison.words import HELD_OUT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("comparison", "response", "law", "rank", "quantity", "value", "se")
MEAN, AICC = "held-out error", "delta AICc"
_MARKS = ("o", "s", "^")
_WIDTH, _ROW, _HEAD = 6.8, 0.28, 0.75
_ABOVE = 0.24
"""Rows between the hollow marks and the filled one, which would hide them."""
_LINEAR = 10.0
"""AICc up to which the axis is linear; logarithmic beyond."""


def data(found: Mapping[str, Any]) -> Frame:
    """Everything drawn: one row per law and quantity, the kinds of held-out points under their own names."""
    rows = []
    for comparison in found["comparisons"]:
        for law in comparison["laws"]:
            head = (comparison["label"], comparison["response"], law["name"], law["rank"])
            best = law["rank"] == 1
            against = law["against_best"]
            rows += [(*head, HELD_OUT[kind], number(value), math.nan) for kind, value in law["held_out"].items()]
            rows.append((*head, MEAN, number(law["held_out_error"]), math.nan if best else number(against["error_se"])))
            rows.append((*head, AICC, number(law["delta_aicc"]), math.nan if best else number(against["aicc_se"])))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def draw(table: Frame) -> Figure:
    """Draw what `data` returned."""
    from matplotlib.figure import Figure

    if table.empty:
        return figures.nothing("No law could be fitted.")
    groups = list(table.groupby(["comparison", "response"], sort=False))
    heights = [_HEAD + _ROW * group["law"].nunique() for _, group in groups]
    figure = Figure(figsize=(_WIDTH, sum(heights) + 0.4))
    axes = figure.subplots(len(groups), 2, squeeze=False, sharex="col", height_ratios=heights)
    kinds = [k for k in dict.fromkeys(table["quantity"]) if k not in (MEAN, AICC)]
    for (left, right), ((label, response), group) in zip(axes, groups):
        _errors(left, group, kinds)
        _aicc(right, group)
        what = "δ" if response == "delta" else "loss"
        left.set_title(f"{label}: {what}", loc="left")
        for ax in (left, right):
            ax.tick_params(labelbottom=True)
    axes[-1, 0].set_xlim(left=0)
    axes[-1, 0].set_xlabel("held-out error (1 = as large as the value)")
    axes[-1, 1].set_xlabel("AICc above the lowest")
    _logarithmic(axes[-1, 1], table.loc[table["quantity"] == AICC, "value"].max())
    _legend(figure, kinds)
    return figure


def _laws(ax: Axes, group: Frame) -> list[str]:
    laws = list(group.sort_values("rank")["law"].unique())
    ax.set_yticks(range(len(laws)), laws)
    ax.set_ylim(len(laws) - 0.4, -0.6)
    ax.grid(axis="y", linewidth=0.4, color="#DDDDDD")
    ax.set_axisbelow(True)
    return laws


def _errors(ax: Axes, group: Frame, kinds: list[str]) -> None:
    laws = _laws(ax, group)
    for kind, mark in zip(kinds, _MARKS):
        rows = group[group["quantity"] == kind]
        places = [laws.index(law) for law in rows["law"]]
        ax.plot(
            rows["value"],
            np.subtract(places, _ABOVE),
            mark,
            color="#7F7F7F",
            markerfacecolor="none",
            markeredgewidth=0.7,
        )
    mean = group[group["quantity"] == MEAN]
    places = [laws.index(law) for law in mean["law"]]
    ax.errorbar(mean["value"], places, xerr=mean["se"], fmt="D", color=figures.COLOURS[8], elinewidth=0.9, zorder=3)


def _aicc(ax: Axes, group: Frame) -> None:
    laws = _laws(ax, group)
    rows = group[group["quantity"] == AICC]
    places = [laws.index(law) for law in rows["law"]]
    ax.axvspan(0, AICC_ALIKE, color="#EEEEEE", zorder=0)
    ax.errorbar(rows["value"], places, xerr=rows["se"], fmt="D", color=figures.COLOURS[2], elinewidth=0.9, zorder=3)
    ax.set_yticklabels([])


def _logarithmic(ax: Axes, largest: float) -> None:
    """The axis of AICc, and of those that share it: linear at first, with labels at 1, 2, 5, 10, 20 or at powers."""
    from matplotlib.ticker import NullLocator

    powers = range(1, max(2, math.ceil(math.log10(max(largest, _LINEAR))) + 1))
    steps = (1, 2, 5) if len(powers) <= 2 else (1,)
    ax.set_xscale("symlog", linthresh=_LINEAR, linscale=1.0)
    ticks = [0, 5, *(step * 10.0**power for power in powers for step in steps)]
    low, high = ax.get_xlim()
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks([tick for tick in ticks if tick <= high], [f"{tick:g}" for tick in ticks if tick <= high])
    ax.set_xlim(low, high)


def _legend(figure: Figure, kinds: list[str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    for kind, mark in zip(kinds, _MARKS):
        text = f"without {kind}" if kind.startswith("each") else f"without the {kind}"
        handles.append(
            Line2D([], [], color="#7F7F7F", marker=mark, markerfacecolor="none", linestyle="none", label=text)
        )
    blue, red = figures.COLOURS[8], figures.COLOURS[2]
    handles.append(Line2D([], [], marker="D", color=blue, linewidth=0.9, label="mean ± error of difference from best"))
    handles.append(Line2D([], [], marker="D", color=red, linewidth=0.9, label="AICc ± error of difference from best"))
    handles.append(Patch(color="#EEEEEE", label=f"AICc within {AICC_ALIKE:g}"))
    figures.legend(figure, handles, most=3)
