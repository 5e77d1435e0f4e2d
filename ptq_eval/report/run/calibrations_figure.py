"""δ under other calibrations, as its difference to the first: by text, against windows, and against their length.

A column of panels per factor that was varied, a row per bit-width with an axis of its own; a colour and a line per
method, a mark per method or, where there are several, per trajectory.  In each panel the other factors are as in the
first condition, whose difference is zero by definition.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

import pandas as pd

from ptq_eval.report.common import figures
from ptq_eval.report.common.data import Frame, Study
from ptq_eval.report.run.calibrations import FACTORS, summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = (
    "factor", "trajectory", "label", "bits", *FACTORS, "checkpoints", "delta_first", "difference", "error",
    "significant",
)  # fmt: skip
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_APART = 0.12
"""Shift between series at one text, where the distance of two texts is 1."""
_NUDGE = 1.03
"""The same as a factor on a logarithmic axis."""
_NAME_LENGTH = 14
_WIDTH = 2.6
"""Inches of a column of panels."""


def data(study: Study) -> Frame:
    """Everything drawn: per `factor`, the conditions that differ from the first in it alone, and the first itself."""
    found: list[dict[str, Any]] = []
    for row in summary(study).to_dict("records"):
        if len(row["varied"]) == 1:
            (factor,) = row["varied"]
            zero = {**row, **row["first"], "difference": 0.0, "error": 0.0, "significant": 0}
            found += [{**one, "factor": factor} for one in (zero, row)]
    table = pd.DataFrame(found, columns=list(COLUMNS))
    order = {factor: i for i, factor in enumerate(FACTORS)}
    series = ["factor", "trajectory", "label", "bits"]
    table = table.drop_duplicates([*series, *FACTORS])
    return table.sort_values("factor", key=lambda names: names.map(order), kind="stable").reset_index(drop=True)


def draw(table: Frame) -> Figure:
    """Draw what `data` returned."""
    if table.empty:
        return figures.nothing("No calibration was measured that differs from the first in one respect.")
    factors, widths = list(dict.fromkeys(table["factor"])), sorted(table["bits"].unique())
    series = list(dict.fromkeys(zip(table["label"], table["trajectory"])))
    styles = _styles(table)
    figure, axes = figures.panels(len(widths), len(factors), sharey="row")
    figure.set_figwidth(max(_WIDTH * len(factors) + 0.4, 3.8))
    for row, bits in zip(axes, widths):
        for ax, factor in zip(row, factors):
            mine = table[(table["factor"] == factor) & (table["bits"] == bits)]
            _panel(ax, mine, factor, series, styles)
        row[0].set_ylabel(f"{bits:.0f} bits: δ − δ of the first\n(nats per token)")
    for ax, factor in zip(axes[-1], factors):
        ax.set_xlabel(f"calibration {FACTORS[factor]}")
    _legend(figure, table, styles)
    return figure


@dataclass(frozen=True)
class _Styles:
    """Looks of configurations and, where there are several, of trajectories."""

    labels: dict[str, dict[str, Any]]
    runs: dict[str, dict[str, Any]]


def _styles(table: Frame) -> _Styles:
    labels, runs = list(dict.fromkeys(table["label"])), list(dict.fromkeys(table["trajectory"]))
    marks = [{"marker": mark} for mark in figures.MARKS]
    looks = [{"color": colour, "linestyle": line} for colour, line in zip(_COLOURS, cycle(figures.LINES))]
    if len(runs) == 1:
        looks = [{**look, **mark} for look, mark in zip(looks, marks)]
    return _Styles(dict(zip(labels, cycle(looks))), dict(zip(runs, cycle(marks))) if len(runs) > 1 else {})


def _panel(ax: Axes, mine: Frame, factor: str, series: list[tuple[str, str]], styles: _Styles) -> None:
    ax.axhline(0, color="0.6", linewidth=0.6, zorder=0)
    names, text = list(dict.fromkeys(mine["calib_text"])), factor == "calib_text"
    for i, (label, run) in enumerate(series):
        own = mine[(mine["label"] == label) & (mine["trajectory"] == run)]
        shift = i - (len(series) - 1) / 2
        if text:
            x: Any = [names.index(name) + _APART * shift for name in own["calib_text"]]
        else:
            own = own.sort_values(factor)
            x = own[factor].astype(float) * _NUDGE**shift
        look: dict[str, Any] = {"elinewidth": 0.7, "linewidth": 0.8, **styles.labels[label], **styles.runs.get(run, {})}
        look |= {"linestyle": "none"} if text else {}
        ax.errorbar(x, own["difference"], yerr=own["error"], **look)
    if text:
        ax.set_xticks(range(len(names)), [_short(name) for name in names], fontsize=6)
        ax.set_xlim(-0.6, len(names) - 0.4)
        return
    values = sorted(mine[factor].astype(float).unique())
    ax.set_xscale("log")
    ax.set_xticks(values, [f"{value:.0f}" for value in values])
    ax.minorticks_off()
    if values:
        ax.set_xlim(values[0] / 1.4, values[-1] * 1.4)


def _short(name: str) -> str:
    """A text's name in two lines, the beginning of a long path omitted."""
    kind, colon, rest = str(name).rpartition(":")
    rest = rest if len(rest) <= _NAME_LENGTH else f"…{rest[1 - _NAME_LENGTH :]}"
    return f"{kind}{colon}\n{rest}" if colon else rest


def _legend(figure: Figure, table: Frame, styles: _Styles) -> None:
    from matplotlib.lines import Line2D

    handles: list[Any] = [Line2D([], [], label=label, **look) for label, look in styles.labels.items()]
    handles += [Line2D([], [], label=run, color="black", linestyle="none", **look) for run, look in styles.runs.items()]
    several = int(table["checkpoints"].max())
    bars = f"mean over {several} checkpoints ± one standard error" if several > 1 else "bars: one standard error"
    handles.append(Line2D([], [], color="grey", linestyle="none", marker="|", markersize=9, label=bars))
    figures.legend(figure, handles, most=4, handlelength=2.6)
