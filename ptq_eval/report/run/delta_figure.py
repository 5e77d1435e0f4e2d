"""δ against D/N: one panel per quantizer configuration, colours for bits, marks for runs.

Both axes are logarithmic.  Where evaluation noise reaches zero, as is common at 8 bits, the axis of δ becomes linear
below the size of that noise and goes on to negative values: every point is drawn at its value with its whole bar, none
at an edge where it would hide another.  A law is drawn where it goes through the points (`curves.follows`) and nowhere
else, and through no deltas that are noise: a straight line above that zone, which bends within it.  Hollow points are
not significant beside their error and noise floor together, where that is known.  Runs at one D/N are drawn side by
side, a little apart.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from ptq_eval.laws.forecast.series import Series
from ptq_eval.report.common import figures
from ptq_eval.report.common.data import Frame, Study, predict
from ptq_eval.report.common.tables import clear
from ptq_eval.report.run import curves

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = (
    "quantizer", "run", "title", "params", "bits", "kind", "tokens", "tokens_per_param", "delta", "delta_se", "shown",
)  # fmt: skip
PER_ROW = 3
CURVE_POINTS = 40
_LINEAR = 0.7
"""Length of the axis from zero to where it turns logarithmic, in powers of ten."""
BESIDE = 1.035
"""Factor between the places of two runs at one D/N."""


def data(study: Study) -> Frame:
    """Everything drawn: kind "measured" or "fit"; `shown` is "clear", "noise" (not significant) or "curve"."""
    rows = study.measured
    rows = rows[(rows["tokens_per_param"] > 0) & np.isfinite(rows["tokens_per_param"])]
    rows = rows[rows["label"].isin(study.panels)]
    points = rows.assign(quantizer=rows["label"], run=rows["trajectory"], kind="measured")
    points["title"] = points["run"].map(study.title)
    points["shown"] = np.where(clear(points), "clear", "noise")
    series = {(s.quantizer, run, s.bits): s for run, own in curves.all_series(study).items() for s in own}
    lines = [
        _curve(study, series.get((label, run, bits)), label, run, bits)
        for (label, run, bits) in points.groupby(["quantizer", "run", "bits"], sort=False).groups
    ]
    parts = [part for part in (points, *lines) if len(part)]
    return pd.concat(parts, ignore_index=True)[list(COLUMNS)] if parts else pd.DataFrame(columns=list(COLUMNS))


def _curve(study: Study, series: Series | None, label: str, run: str, bits: float) -> Frame:
    """The fitted law where it goes through the points of a series; else nothing, and nothing through noise."""
    if series is None or not series.significant:
        return pd.DataFrame()
    params, (fit, at) = series.params, study.fit_of(label, run, bits)
    at_points = predict(fit, params=params, tokens=series.tokens, bits=at)
    if at_points is None or not curves.follows(at_points, series.delta, series.noise):
        return pd.DataFrame()
    tokens = np.geomspace(series.tokens[0], series.tokens[-1], CURVE_POINTS)
    values = predict(fit, params=params, tokens=tokens, bits=at)
    curve = pd.DataFrame({"tokens": tokens, "tokens_per_param": tokens / params, "delta": values})
    head = {"quantizer": label, "run": run, "title": study.title(run), "params": params, "bits": bits}
    return curve.assign(**head, kind="fit", delta_se=math.nan, shown="curve")


def linear_below(table: Frame) -> float:
    """δ below which the axis is linear: a power of ten near the noise of what it hides; 0 where it hides nothing.

    The noise is the median standard error of the hollow points.  Where no standard error is known, or all points
    below zero are significant, it is the smallest |δ|.
    """
    points = table[table["kind"] == "measured"]
    low = points[(points["shown"] == "noise") | (points["delta"] <= 0)]
    if low.empty:
        return 0.0
    noise = low["delta_se"].median() if (low["delta_se"] > 0).any() else math.nan
    size = noise if noise > 0 else points["delta"].abs().where(points["delta"] != 0).min()
    return 10.0 ** math.ceil(math.log10(size)) if size > 0 else 1e-4


def draw(table: Frame) -> Figure:
    """Draw what `data` returned."""
    if table.empty:
        return figures.nothing("No δ was measured at a known D/N.")
    labels = list(dict.fromkeys(table["quantizer"]))
    columns = min(len(labels), PER_ROW)
    figure, axes = figures.panels(math.ceil(len(labels) / columns), columns, sharex=True, sharey=True)
    for ax, label in zip(axes.flat, labels):
        delta_axis(ax, table)
        figures.log_x(ax, *figures.span(table["tokens_per_param"]), tokens=False)
        ax.set_title(label)
        _panel(ax, table[table["quantizer"] == label], figures.runs_by_size(table))
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


def delta_axis(ax: Axes, table: Frame, which: Literal["x", "y"] = "y") -> None:
    """The axis of δ: logarithmic, from `linear_below` on where there is something at or below zero."""
    from matplotlib.ticker import NullFormatter, SymmetricalLogLocator

    points = table[table["kind"] == "measured"]
    error, linear = points["delta_se"].fillna(0), linear_below(table)
    top = max(float((points["delta"] + error).max()), linear) * 1.8
    axis, span, line = (ax.yaxis, ax.axhspan, ax.axhline) if which == "y" else (ax.xaxis, ax.axvspan, ax.axvline)
    if linear:
        (ax.set_yscale if which == "y" else ax.set_xscale)("symlog", linthresh=linear, linscale=_LINEAR)
        ax.set(**{f"{which}lim": (min(1.5 * float((points["delta"] - error).min()), -0.3 * linear), top)})
        axis.set_minor_locator(SymmetricalLogLocator(base=10, linthresh=linear, subs=np.arange(2, 10).tolist()))
        span(-linear, linear, color="0.95", linewidth=0, zorder=0)
        line(0, color="0.4", linewidth=0.6, zorder=0.5)
    else:
        ax.set(**{f"{which}scale": "log", f"{which}lim": (float(points["delta"].min()) / 2.5, top)})
    axis.set_minor_formatter(NullFormatter())


def _panel(ax: Axes, table: Frame, runs: list[str]) -> None:
    for (run, bits), group in table.groupby(["run", "bits"], sort=False):
        place, colour = runs.index(str(run)), figures.colour(float(bits))
        mark, line = figures.MARKS[place % len(figures.MARKS)], figures.LINES[place % len(figures.LINES)]
        curve = group[group["kind"] == "fit"]
        ax.plot(curve["tokens_per_param"], curve["delta"], line, color=colour, linewidth=0.7)
        beside = BESIDE ** (place - (len(runs) - 1) / 2)
        for shown, face in (("clear", colour), ("noise", "white")):
            points = group[group["shown"] == shown]
            ax.errorbar(
                points["tokens_per_param"] * beside,
                points["delta"],
                yerr=points["delta_se"].fillna(0),
                fmt=mark,
                color=colour,
                elinewidth=0.7,
                markerfacecolor=face,
                markeredgewidth=0.7,
                markersize=3.2,
            )


def _legend(figure: Figure, table: Frame) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    has_fit = bool((table["kind"] == "fit").any())
    titles = table.drop_duplicates("run").set_index("run")["title"]
    handles: list[Artist] = [
        Line2D([], [], color=figures.colour(bits), linewidth=3, label=f"{bits:.0f} bits")
        for bits in sorted(table["bits"].unique())
    ]
    handles += [
        Line2D(
            [],
            [],
            color="black",
            linewidth=0.9,
            marker=figures.MARKS[i % len(figures.MARKS)],
            linestyle=figures.LINES[i % len(figures.LINES)] if has_fit else "none",
            label=titles[run] + (", line: fit" if has_fit else ""),
        )
        for i, run in enumerate(figures.runs_by_size(table))
    ]
    noise = int((table["shown"] == "noise").sum())
    if noise:
        label = f"hollow: |δ| not beyond its noise ({noise} points)"
        handles.append(Line2D([], [], color="black", marker="o", markerfacecolor="none", linestyle="none", label=label))
    if linear_below(table):
        handles.append(Patch(color="0.95", label="axis of δ linear"))
    figures.legend(figure, handles, most=4, handlelength=2.4)
