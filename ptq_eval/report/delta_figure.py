"""δ against D/N, both logarithmic: one panel per quantizer configuration, colours for bits, marks for runs.

A logarithmic axis has no place for δ ≤ 0, which evaluation noise makes common at 8 bits.  Such points, and those
far below every δ that stands out from its noise, are drawn hollow at the lower edge, so that none disappears.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ptq_eval.report import style
from ptq_eval.report.curves import predict
from ptq_eval.report.study import Frame, Study
from ptq_eval.report.tables import title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("quantizer", "run", "params", "bits", "kind", "tokens", "tokens_per_param", "delta", "delta_se", "shown")
PER_ROW = 3
CURVE_POINTS = 40
CLEAR = 2.0
"""δ above this many standard errors stands out from its noise and sets the range of the axis."""


def data(study: Study) -> Frame:
    """Everything drawn: kind "measured" or "fit"; `shown` is "value", "lower edge" or "curve"."""
    rows = study.measured
    rows = rows[(rows["tokens_per_param"] > 0) & np.isfinite(rows["tokens_per_param"])]
    points = rows.assign(quantizer=rows["label"], run=rows["trajectory"], kind="measured")
    floor = _floor(points)
    points["shown"] = np.where(points["delta"] >= floor, "value", "lower edge")
    curves = [
        _curve(study, label, run, bits, group)
        for (label, run, bits), group in points.groupby(["quantizer", "run", "bits"], sort=False)
    ]
    parts = [part for part in (points, *curves) if len(part)]
    return pd.concat(parts, ignore_index=True)[list(COLUMNS)] if parts else pd.DataFrame(columns=list(COLUMNS))


def _floor(points: Frame) -> float:
    """The lower end of the axis: a little below the smallest δ that stands out from its noise."""
    positive = points[points["delta"] > 0]
    clear = positive[positive["delta"] > CLEAR * positive["delta_se"].fillna(0)]
    smallest = (clear if len(clear) else positive)["delta"].min()
    return float(smallest) / 2 if math.isfinite(smallest) else math.inf


def _curve(study: Study, label: str, run: str, bits: float, group: Frame) -> Frame:
    params = float(group["params"].iloc[0])
    tokens = np.geomspace(group["tokens"].min(), group["tokens"].max(), CURVE_POINTS)
    values = predict(study.fit_for(label, run), params=params, tokens=tokens, bits=bits)
    if values is None or len(group) < 2:
        return pd.DataFrame()
    curve = pd.DataFrame({"tokens": tokens, "tokens_per_param": tokens / params, "delta": values})
    return curve.assign(
        quantizer=label, run=run, params=params, bits=bits, kind="fit", delta_se=math.nan, shown="curve"
    )


def draw(table: Frame) -> Figure:
    """Draw what `data` returned."""
    from matplotlib.ticker import NullFormatter

    if table.empty:
        return style.nothing("No δ was measured at a known D/N.")
    labels = list(dict.fromkeys(table["quantizer"]))
    columns = min(len(labels), PER_ROW)
    figure, axes = style.panels(math.ceil(len(labels) / columns), columns, sharex=True, sharey=True)
    bottom, top = _limits(table)
    for ax, label in zip(axes.flat, labels):
        ax.set_yscale("log")
        ax.set_ylim(bottom, top)
        ax.yaxis.set_minor_formatter(NullFormatter())
        style.log_x(ax, *style.span(table["tokens_per_param"]), tokens=False)
        ax.set_title(label)
        _panel(ax, table[table["quantizer"] == label], style.runs_by_size(table), bottom)
    for ax in axes.flat[len(labels) :]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel("δ (nats per token)")
    for column in range(columns):
        lowest = [ax for ax, _ in zip(axes.flat, labels)][column::columns][-1]
        lowest.set_xlabel("D/N (tokens per parameter)")
        lowest.tick_params(labelbottom=True)
    _legend(figure, table)
    return figure


def _limits(table: Frame) -> tuple[float, float]:
    shown = table[table["shown"] == "value"]
    if shown.empty:
        return 1e-4, 1.0
    top = (shown["delta"] + shown["delta_se"].fillna(0)).max()
    return float(shown["delta"].min()) / 2.5, float(top) * 1.8


def _panel(ax: Axes, table: Frame, runs: list[str], bottom: float) -> None:
    for (run, bits), group in table.groupby(["run", "bits"], sort=False):
        place, colour = runs.index(str(run)), style.colour(float(bits))
        mark = style.MARKS[place % len(style.MARKS)]
        curve = group[group["kind"] == "fit"]
        line = style.LINES[place % len(style.LINES)]
        ax.plot(curve["tokens_per_param"], curve["delta"], line, color=colour, linewidth=0.7)
        points = group[group["shown"] == "value"]
        lower = np.minimum(points["delta_se"].fillna(0), points["delta"] - bottom / 10)
        ax.errorbar(
            points["tokens_per_param"],
            points["delta"],
            yerr=[lower, points["delta_se"].fillna(0)],
            fmt=mark,
            color=colour,
            elinewidth=0.7,
            markeredgewidth=0,
        )
        edge = group[group["shown"] == "lower edge"]
        if len(edge):  # an empty artist outside the clip has no extent, and the layout collapses
            low = np.full(len(edge), 0.025)
            transform = ax.get_xaxis_transform()
            hollow = {"color": colour, "markerfacecolor": "none", "markeredgewidth": 0.7}
            ax.plot(edge["tokens_per_param"], low, mark, transform=transform, clip_on=False, **hollow)


def _legend(figure: Figure, table: Frame) -> None:
    from matplotlib.lines import Line2D

    has_fit = bool((table["kind"] == "fit").any())
    sizes = table.drop_duplicates("run").set_index("run")["params"]
    handles = [
        Line2D([], [], color=style.colour(bits), linewidth=3, label=f"{bits:.0f} bits")
        for bits in sorted(table["bits"].unique())
    ]
    handles += [
        Line2D(
            [],
            [],
            color="black",
            linewidth=0.9,
            marker=style.MARKS[i % len(style.MARKS)],
            linestyle=style.LINES[i % len(style.LINES)] if has_fit else "none",
            label=title(run, sizes[run]) + (", line: fit" if has_fit else ""),
        )
        for i, run in enumerate(style.runs_by_size(table))
    ]
    hidden = int((table["shown"] == "lower edge").sum())
    if hidden:
        label = f"hollow: δ ≤ 0 or below the axis ({hidden} points)"
        handles.append(Line2D([], [], color="black", marker="o", markerfacecolor="none", linestyle="none", label=label))
    style.legend(figure, handles, most=4, handlelength=2.4)
