"""The best training precision of a model served as trained, against the budget: free, at given N, at given memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from ptq_eval.laws.plan.answers import Plan
from ptq_eval.laws.plan.curves import precision_against_budget
from ptq_eval.laws.plan.question import Setting
from ptq_eval.report.common import figures
from ptq_eval.report.common.data import Frame
from ptq_eval.report.common.numbers import count
from ptq_eval.report.plan.loss_figure import band, beyond_handles, line
from ptq_eval.report.plan.words import SETTINGS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("setting", "params", "budget", "bits", "low", "high", "N", "D", "beyond")
COLOURS = {Setting.FREE: "#A6CEE3", Setting.MEMORY: "#009E73", Setting.PARAMS: "#D55E00"}


def data(plan: Plan) -> Frame:
    """Everything drawn: a curve per setting, and the budget of the question, setting asked."""
    return pd.DataFrame(precision_against_budget(plan.planner), columns=list(COLUMNS))


def draw(table: Frame) -> Figure:
    """Draw what `data` returned."""
    from matplotlib.lines import Line2D

    curves = table[table["setting"] != "asked"]
    if curves.empty:
        return figures.nothing("No law of training precision is known here: gamma_w, gamma_a, gamma_kv.")
    figure, axes = figures.panels(1, 1)
    ax = axes[0, 0]
    handles: list[Any] = []
    for setting, curve in curves.groupby("setting", sort=False):
        colour = COLOURS[Setting(str(setting))]
        width = 2.5 if setting == Setting.FREE else 1.0  # another setting may lie on it
        line(ax, curve["budget"], curve["bits"], curve["beyond"], colour, width)
        band(ax, curve["budget"], curve["low"], curve["high"], colour)
        N = float(curve["params"].iloc[0])
        label = f"N = {count(N)}" if math.isfinite(N) else SETTINGS[Setting(str(setting))]
        handles.append(Line2D([], [], color=colour, linewidth=1.2 * width, label=label))
    for budget in table.loc[table["setting"] == "asked", "budget"]:
        ax.axvline(budget, color="0.6", linewidth=0.8, zorder=0)
        handles.append(Line2D([], [], color="0.6", linewidth=0.8, label="budget asked about"))
    ax.set_xscale("log")
    ax.set_xlim(curves["budget"].min(), curves["budget"].max())
    ax.set_ylim(0, None)
    ax.set_xlabel("budget (FLOPs at 16 bits)")
    ax.set_ylabel("best training precision (bits)")
    figures.legend(figure, handles + beyond_handles(curves), most=3, handlelength=1.8)
    return figure
