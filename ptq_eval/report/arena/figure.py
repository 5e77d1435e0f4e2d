"""Scores of every law: a column of panels for each question, a row for δ and one for losses; a mark is a ranking.

Filled marks are the best law of a ranking and those not significantly different from it, hollow ones are significantly
worse, crosses have no error.  Colours are tables.  Bars are standard errors over runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ptq_eval.laws.compare.arena import Place
from ptq_eval.report.arena.words import BASELINE_NAMES, QUESTIONS, RESPONSES
from ptq_eval.report.common import figures
from ptq_eval.report.common.data import Frame
from ptq_eval.report.common.numbers import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("table", "ranking", "response", "held_out", "law", "score", "error", "place")
_WIDTH, _ROW, _HEAD = 7.0, 0.26, 0.7
_SPREAD = 0.3
"""Rows over which the tables of one law are spread."""


def data(found: Mapping[str, Any]) -> Frame:
    """Everything drawn: a row per ranking, question and law that has a score."""
    rows = []
    for table in found["tables"]:
        for ranking in table["rankings"]:
            for one in ranking["questions"]:
                head = (table["name"], ranking["label"], ranking["response"], one["held_out"])
                for score in one["scores"]:
                    rows.append((*head, score["law"], score["score"], number(score["error"]), score["place"]))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def draw(table: Frame) -> Figure:
    """Draw what `data` returned."""
    from matplotlib.figure import Figure

    if table.empty:
        return figures.nothing("No law could be scored.")
    responses = [one for one in RESPONSES if one in set(table["response"])]
    laws = {one: _laws(table[table["response"] == one]) for one in responses}
    heights = [_HEAD + _ROW * len(laws[one]) for one in responses]
    figure = Figure(figsize=(_WIDTH, sum(heights) + 0.4))
    axes = figure.subplots(len(responses), len(QUESTIONS), squeeze=False, sharey="row", height_ratios=heights)
    names = list(dict.fromkeys(table["table"]))
    for row, response in zip(axes, responses):
        for ax, question in zip(row, QUESTIONS):
            own = table[(table["response"] == response) & (table["held_out"] == question)]
            _panel(ax, own, laws[response], names)
            ax.set_title(f"{RESPONSES[response]}: {QUESTIONS[question]}")
    for ax in axes[-1]:
        ax.set_xlabel("rms of log f − log y")
    _legend(figure, names)
    return figure


def _laws(own: Frame) -> list[str]:
    return own.groupby("law")["score"].median().sort_values().index.tolist()


def _panel(ax: Axes, own: Frame, laws: list[str], names: list[str]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ax.set_yticks(range(len(laws)), [BASELINE_NAMES.get(law, law) for law in laws])
    ax.set_ylim(len(laws) - 0.4, -0.6)
    ax.grid(axis="y", linewidth=0.4, color="#DDDDDD")
    ax.set_axisbelow(True)
    if own.empty:
        ax.set_xticks([])
        ax.text(0.5, 0.5, "no score", transform=ax.transAxes, ha="center", color="0.5")
        return
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    for one in own.to_dict("records"):
        shift = _SPREAD * ((names.index(one["table"]) + 0.5) / len(names) - 0.5) * 2
        colour = figures.MORE_COLOURS[names.index(one["table"]) % len(figures.MORE_COLOURS)]
        mark = "x" if one["place"] == Place.UNKNOWN else "o"
        inside = "none" if one["place"] == Place.WORSE else colour
        error = one["error"] if np.isfinite(one["error"]) else None
        place = laws.index(one["law"]) + shift
        ax.errorbar(
            max(one["score"], 1e-6), place, xerr=error, fmt=mark, color=colour, markerfacecolor=inside,
            elinewidth=0.6, markersize=3, zorder=3,
        )  # fmt: skip


def _legend(figure: Figure, names: list[str]) -> None:
    from matplotlib.lines import Line2D

    handles: list[Any] = [
        Line2D(
            [], [], marker="o", linestyle="none", label=name, color=figures.MORE_COLOURS[i % len(figures.MORE_COLOURS)]
        )
        for i, name in enumerate(names)
    ]
    kinds = (("o", "0.3", "best, or not different"), ("o", "none", "significantly worse"), ("x", "0.3", "no error"))
    handles += [
        Line2D([], [], marker=mark, linestyle="none", color="0.3", markerfacecolor=inside, label=label)
        for mark, inside, label in kinds
    ]
    figures.legend(figure, handles, most=4)
