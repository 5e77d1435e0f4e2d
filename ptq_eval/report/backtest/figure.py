"""A fan chart of one run: the loss after quantization against D, and how it was forecast from one earlier checkpoint.

A row of panels per bit-width and a column per quantizer; two columns for a single quantizer.  The band holds what a
checkpoint would measure, with probability 0.5 and 0.9, from the origin (the dotted line) on; checkpoints after the
origin are hollow, because the forecast did not know them.  Each panel has its own axis: it holds the measurements, and
the band as far as it is within the height that they take on either side.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Collection, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ptq_eval.laws.forecast.backtest import asked_at
from ptq_eval.laws.forecast.forecast import draw as forecast
from ptq_eval.laws.forecast.forecast import learn
from ptq_eval.laws.forecast.series import MIN_CHECKPOINTS, Series
from ptq_eval.report.common import figures
from ptq_eval.report.common.data import Frame
from ptq_eval.report.common.numbers import count, short, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = (
    "run", "title", "params", "quantizer", "bits", "kind", "tokens", "loss", "low_90", "low_50", "high_50", "high_90",
)  # fmt: skip
POINTS = 40
"""Places of the band, evenly in log D."""
BEYOND = 1.15
"""How far beyond the last checkpoint the band goes, as a factor of D."""
TITLE_WIDTH = 34
_INNER, _OUTER, _BEFORE = 0.32, 0.16, 0.18
"""Opacity of the bands of 50 and 90 %; where they overlap, both count."""


def name(run: str) -> str:
    """The file of a run's fan chart, without its ending."""
    return "fan_" + (re.sub(r"[^A-Za-z0-9.]+", "-", run).strip("-") or "run")


def data(own: Sequence[Series], quantizers: Collection[str] = ()) -> Frame:
    """Everything drawn of one run: kind is before, known, later, band or band before (whose loss is the median).

    own: all its series, which the forecast of each learns from; quantizers: those to draw (default: all).
    """
    origin = asked_at(own)
    siblings = [part for s in own if len((part := s.until(origin)).tokens) >= MIN_CHECKPOINTS]
    learned, parts = learn(siblings), []
    for whole in own:
        series = whole.until(origin)
        if len(series.tokens) < MIN_CHECKPOINTS or (quantizers and whole.quantizer not in quantizers):
            continue
        head = {name: getattr(whole, name) for name in ("run", "params", "quantizer", "bits")}
        head["title"] = title(whole.run, whole.params, whole.together)
        known = whole.tokens <= origin
        for kind, loss in (("before", whole.loss_fp), ("", whole.loss_q)):
            kinds = kind or np.where(known, "known", "later")
            parts.append(pd.DataFrame({"tokens": whole.tokens, "loss": loss, "kind": kinds}).assign(**head))
        start = series.x[-1]
        x = np.linspace(start, math.log(whole.tokens[-1] * BEYOND), POINTS + 1)[1:]
        paths = forecast(series, siblings, x, learned=learned)
        quantiles = np.quantile(paths.measured_loss[:, len(series.x) :], [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
        band = dict(zip(("low_90", "low_50", "loss", "high_50", "high_90"), quantiles))
        parts.append(pd.DataFrame({"tokens": np.exp(x), **band, "kind": "band"}).assign(**head))
        assert paths.measured_before is not None
        low, middle, high = np.quantile(paths.measured_before, [0.05, 0.5, 0.95], axis=0)
        band = {"tokens": np.exp(x), "loss": middle, "low_90": low, "high_90": high, "kind": "band before"}
        parts.append(pd.DataFrame(band).assign(**head))
    found = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return found.reindex(columns=list(COLUMNS))


def draw(table: Frame) -> Figure:
    """Draw what `data` returned."""
    if table.empty:
        return figures.nothing("No checkpoint of this run can be forecast.")
    labels, bits = list(dict.fromkeys(table["quantizer"])), sorted(table["bits"].unique())
    places = [(label, width) for width in bits for label in labels]
    columns = len(labels) if len(labels) > 1 else min(2, len(bits))
    figure, axes = figures.panels(math.ceil(len(places) / columns), columns, sharex=True)
    ends = figures.span(table["tokens"], 1.2)
    for ax, place in zip_longest(axes.flat, places):
        label, width = place or ("", math.nan)
        panel = table[(table["quantizer"] == label) & (table["bits"] == width)]
        if panel.empty:
            ax.set_axis_off()
            continue
        _panel(ax, panel, figures.colour(width))
        figures.log_x(ax, *ends, tokens=True)
        ax.set_title(textwrap.fill(f"{label}, {width:g} bits", TITLE_WIDTH), fontsize=7.5)
    for row in axes:
        row[0].set_ylabel("loss (nats per token)")
    for ax in axes[-1]:
        ax.set_xlabel("D (tokens)")
    known = table.loc[table["kind"] == "known", "tokens"].max()
    params = float(table["params"].iloc[0])
    name = f"{table['title'].iloc[0]}: forecast from D = {count(known)}, D/N = {short(known / params)}"
    figure.suptitle(name, fontsize=8.5)
    _legend(figure)
    return figure


def _panel(ax: Axes, panel: Frame, colour: str) -> None:
    band, known, later = (panel[panel["kind"] == kind] for kind in ("band", "known", "later"))
    before = panel[panel["kind"] == "before"]
    ends = known.iloc[[-1]]
    x = np.concatenate([ends["tokens"], band["tokens"]])
    for level, opacity in ((90, _OUTER), (50, _INNER)):
        low, high = (np.concatenate([ends["loss"], band[f"{end}_{level}"]]) for end in ("low", "high"))
        ax.fill_between(x, low, high, color=colour, alpha=opacity, linewidth=0, zorder=1)
    ax.plot(x, np.concatenate([ends["loss"], band["loss"]]), color=colour, linewidth=0.9, zorder=2)
    ahead, now = (
        panel[panel["kind"] == "band before"],
        before[before["tokens"] <= float(ends["tokens"].iloc[0])].iloc[[-1]],
    )
    x = np.concatenate([now["tokens"], ahead["tokens"]])
    low, middle, high = (np.concatenate([now["loss"], ahead[name]]) for name in ("low_90", "loss", "high_90"))
    ax.fill_between(x, low, high, color="0.5", alpha=_BEFORE, linewidth=0, zorder=0.5)
    ax.plot(x, middle, color="0.55", linewidth=0.8, linestyle="--", zorder=1.5)
    ax.axvline(float(ends["tokens"].iloc[0]), color="0.4", linestyle=":", linewidth=0.8, zorder=1)
    ax.plot(before["tokens"], before["loss"], color="0.55", linewidth=0.8, zorder=2)
    ax.plot(known["tokens"], known["loss"], "o", color=colour, markeredgewidth=0, zorder=3)
    ax.plot(later["tokens"], later["loss"], "o", color=colour, markerfacecolor="white", markeredgewidth=0.9, zorder=3)
    measured = panel.loc[~panel["kind"].isin(["band", "band before"]), "loss"]
    low, high = float(measured.min()), float(measured.max())
    height = high - low
    bottom = max(min(low, float(band["low_90"].min())), low - height)
    top = min(max(high, float(band["high_90"].max())), high + height)
    ax.set_ylim(bottom - 0.05 * (top - bottom), top + 0.05 * (top - bottom))


def _legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    marks: dict[str, Any] = {"color": "0.3", "marker": "o", "linestyle": "none"}
    handles = [
        Line2D([], [], label="measured, known to the forecast", markeredgewidth=0, **marks),
        Line2D([], [], label="measured later", markerfacecolor="white", **marks),
        Line2D([], [], color="0.55", linewidth=0.8, label="before quantization"),
        Patch(color="0.5", alpha=_BEFORE, linewidth=0, label="its forecast, 90 % (median dashed)"),
        Line2D([], [], color="0.3", linewidth=0.9, label="forecast, median"),
        Patch(color="0.3", alpha=_INNER + _OUTER, linewidth=0, label="interval of a checkpoint, 50 %"),
        Patch(color="0.3", alpha=_OUTER, linewidth=0, label="interval of a checkpoint, 90 %"),
    ]
    figures.legend(figure, handles, most=3)
