"""Loss before and after quantization against D, with turning points and forecast: a row per run, a column per method.

Thin lines join the checkpoints; no law is drawn.  Beyond the last checkpoint, from the origin on that a grey line
marks, the forecast from the run's own checkpoints is a band (50 and 90 %) for the bit-widths whose band is above the
median of the loss before quantization, a dashed line; which other bands reach that line is said in the panel.

Each panel has its own loss axis, because a turn of a hundredth of a nat and one of a whole nat are both results.
A curve that explodes would flatten all others, so of every curve at most `VISIBLE` times the fall of the
full-precision loss is shown above its own minimum, and a curve that is wholly out of reach is named in the panel
instead.  The loss before quantization is a black ring, and the fewer the bits the smaller their mark, drawn on top: at
8 bits δ is often less than a mark is high, and what coincides must still be seen.

In the table `loss_se` is a standard error of a mean over windows, in nats per token: of the loss itself before
quantization, of the paired difference δ after it.  Only the latter is drawn, as bars: they belong to the distance from
the rings.  The former is common to a column of points, and many times larger.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ptq_eval.laws.turning.verdict import VerdictKind
from ptq_eval.report.common import figures
from ptq_eval.report.common.data import Frame, Study
from ptq_eval.report.common.numbers import bounds, number
from ptq_eval.report.run import curves
from ptq_eval.report.run.words import observed, predicted, turn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = (
    "run", "title", "params", "quantizer", "bits", "kind", "tokens", "loss", "loss_se", "low", "high", "low_50",
    "high_50",
)  # fmt: skip
REACH = 10.0
"""A predicted turn is drawn up to this multiple of the largest D; beyond, it is named in the panel."""
VISIBLE, FAR = 2.0, 6.0
"""Multiples of the fall of the full-precision loss: how much of a curve is shown above its minimum, and how far
above the lowest loss a curve is not shown at all."""
MIN_FALL = 0.3
"""The least that counts as that fall, nats per token, so that a short trajectory does not hide its curves."""
TITLE_WIDTH = 38
_INNER, _OUTER = 0.3, 0.15
"""Opacity of the bands of 50 and 90 %; where they overlap, both count."""
RING: dict[str, Any] = {
    "color": "black",
    "markerfacecolor": "none",
    "markersize": 5.8,
    "markeredgewidth": 0.7,
    "linestyle": "none",
}
"""The marks of losses before quantization."""
_SMALLEST, _LARGEST = 2.8, 4.6
"""Points: the marks of the smallest and of the largest bit-width."""
DRAWN = ("observed", "forecast", "predicted")
NOT_DRAWN = ("far", "open", "unidentified")
_ORIGIN: dict[str, Any] = {"color": "0.75", "linestyle": "-", "linewidth": 0.8, "zorder": 1}
_PAPER = {"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
"""Behind a note, so that lines and curves do not run through its letters."""


def data(study: Study) -> Frame:
    """Everything drawn: kind is before, after, band or ahead (the forecast, its median before quantization),
    observed, forecast or predicted; far, open (no turn before `low`) and unidentified turns are not drawn."""
    parts = [pd.DataFrame(columns=list(COLUMNS))]
    series = curves.all_series(study)
    for run in study.runs:
        rows = study.rows[study.rows["trajectory"] == run]
        ahead = curves.bands(series.get(run, []), rows["run"].nunique() == 1, int(number(study.fit.get("seed") or 0)))
        for label in study.panels:
            own = ahead[ahead["quantizer"] == label].drop(columns="quantizer") if len(ahead) else ahead
            parts.append(_panel_data(study, run, label, own))
    parts = [part for part in parts if len(part)]
    return pd.concat(parts, ignore_index=True)[list(COLUMNS)] if parts else pd.DataFrame(columns=list(COLUMNS))


def _panel_data(study: Study, run: str, label: str, ahead: Frame) -> Frame:
    full = study.baseline[(study.baseline["trajectory"] == run) & (study.baseline["tokens"] > 0)]
    after = study.measured[(study.measured["trajectory"] == run) & (study.measured["label"] == label)]
    after = after[after["tokens"] > 0]
    if full.empty or after.empty:
        return pd.DataFrame()
    params = float(full["params"].iloc[0])
    before = pd.DataFrame({"tokens": full["tokens"], "loss": full["loss_fp"], "kind": "before"})
    if "loss_fp_se" in full:
        before["loss_se"] = [number(error) for error in full["loss_fp_se"]]
    columns = {"tokens": after["tokens"], "bits": after["bits"], "loss": after["loss_q"], "loss_se": after["delta_se"]}
    turns = pd.DataFrame(_turns(study, run, label))
    quantized = pd.DataFrame(columns).assign(kind="after")
    parts = [before, quantized, turns, ahead]
    parts = [part for part in parts if len(part)]
    return (
        pd.concat(parts, ignore_index=True)
        .assign(run=run, title=study.title(run), params=params, quantizer=label)
        .reindex(columns=list(COLUMNS))
    )


def _turns(study: Study, run: str, label: str) -> list[dict[str, Any]]:
    """Turning points of one panel: what was observed, else what is forecast, else what the fit predicts."""
    found = []
    for entry in study.critical:
        if str(entry.get("run")) == run and study.label_of(entry) == label:
            found.append({"bits": number(entry.get("bits")), **_turn(entry)})
    return found


def _turn(entry: Mapping[str, Any]) -> dict[str, Any]:
    seen = observed(entry)
    value, low, high = bounds(entry.get("observed" if seen else "predicted"))
    if seen:
        return {"kind": "observed", "tokens": turn(entry), "low": low, "high": high}
    if (verdict := entry.get("verdict_kind")) == VerdictKind.NOT_BEFORE:
        return {"kind": "open", "tokens": math.nan, "low": bounds(entry["answer"])[1]}
    factor = number(entry.get("extrapolation_factor"))
    if verdict == VerdictKind.FORECAST:
        value, low, high = bounds(entry["answer"])
        factor = value / number(entry["largest_tokens"])
    elif not predicted(entry):
        return {"kind": "unidentified", "tokens": math.nan}
    kind = str(verdict) if factor <= REACH else "far"
    return {"kind": kind, "tokens": value, "low": low, "high": high}


def draw(table: Frame) -> Figure:
    """Draw what `data` returned."""
    if table.empty:
        return figures.nothing("No loss was measured at a known D.")
    runs, labels = figures.runs_by_size(table), list(dict.fromkeys(table["quantizer"]))
    figure, axes = figures.panels(len(runs), len(labels))
    sizes = mark_sizes(table)
    for row, run in zip(axes, runs):
        for ax, label in zip(row, labels):
            panel = table[(table["run"] == run) & (table["quantizer"] == label)]
            if panel.empty:
                ax.set_axis_off()
                continue
            _panel(ax, panel, sizes)
            words = f"{panel['title'].iloc[0]}, {label}"
            ax.set_title(textwrap.fill(words, TITLE_WIDTH), fontsize=7.5)
        row[0].set_ylabel("loss (nats per token)")
    for ax in axes[-1]:
        ax.set_xlabel("D (tokens)")
    _legend(figure, table)
    return figure


def ceiling(panel: Frame) -> tuple[float, float, list[float]]:
    """(bottom, top) of the loss axis, and the bit-widths that are wholly above it."""
    before = panel.loc[panel["kind"] == "before", "loss"]
    fall = max(float(before.max() - before.min()), MIN_FALL)
    after = panel[panel["kind"] == "after"].groupby("bits")["loss"].agg(["min", "max"])
    ahead = panel.loc[panel["kind"].isin(["ahead", "band"]), ["loss", "low"]].min().min()
    bottom = min(float(before.min()), float(after["min"].min()))
    near = after[after["min"] <= bottom + FAR * fall]
    top = max([float(before.max()), *np.minimum(near["max"], near["min"] + VISIBLE * fall)])
    bottom = min(bottom, max(float(np.nan_to_num(ahead, nan=bottom)), bottom - 0.5 * (top - bottom)))
    pad = 0.06 * (top - bottom)
    return bottom - pad, top + pad, [float(bits) for bits in after.index.difference(near.index)]


def mark_sizes(table: Frame) -> dict[float, float]:
    """The size of the mark of each bit-width, in points: marks that coincide show as rings about each other."""
    bits = sorted(table.loc[table["kind"] == "after", "bits"].unique())
    return dict(zip(bits, np.linspace(_SMALLEST, _LARGEST, len(bits)))) if len(bits) > 1 else dict.fromkeys(bits, 3.2)


def _panel(ax: Axes, panel: Frame, sizes: Mapping[float, float]) -> None:
    bottom, top, above = ceiling(panel)
    notes = _notes(panel, above, top)
    figures.log_x(ax, *figures.span(panel.loc[~panel["kind"].isin(NOT_DRAWN), "tokens"]), tokens=True)
    ax.set_ylim(bottom - 0.06 * len(notes) * (top - bottom), top)
    panel = panel[~panel["bits"].isin(above)]
    before = panel[panel["kind"] == "before"]
    ax.plot(before["tokens"], before["loss"], "o", zorder=3, **RING)
    for place, (bits, group) in enumerate(reversed(list(panel[panel["kind"] == "after"].groupby("bits")))):
        look = {"color": figures.colour(float(bits)), "markersize": sizes[bits], "zorder": 3.1 + 0.01 * place}
        se = group["loss_se"].fillna(0)
        ax.errorbar(group["tokens"], group["loss"], yerr=se, fmt="o", elinewidth=0.7, markeredgewidth=0, **look)
    _lines(ax, panel)
    _forecast(ax, panel)
    _turning_points(ax, panel)
    for i, words in enumerate(reversed(notes)):
        place = {"xycoords": "axes fraction", "xytext": (0, 1.5 + 7.5 * i), "textcoords": "offset points"}
        note = ax.annotate(words, (0.02, 0.02), fontsize=6, color="0.3", zorder=4, bbox=_PAPER, **place)
        note.set_in_layout(False)  # a long one must not make its panel narrow


def _lines(ax: Axes, panel: Frame) -> None:
    """What joins the checkpoints, before quantization and at each bit-width."""
    points = panel[panel["kind"].isin(["before", "after"])].sort_values("tokens", kind="stable")
    for bits, group in points.groupby(points["bits"].fillna(0)):
        colour = figures.colour(float(bits)) if bits else "black"
        ax.plot(group["tokens"], group["loss"], color=colour, linewidth=0.9, alpha=0.6, zorder=2)


def _forecast(ax: Axes, panel: Frame) -> None:
    bands, ahead = panel[panel["kind"] == "band"], panel[panel["kind"] == "ahead"]
    for bits, band in bands.groupby("bits"):
        colour = figures.colour(float(bits))
        for ends, opacity in ((("low", "high"), _OUTER), (("low_50", "high_50"), _INNER)):
            low, high = (band[end] for end in ends)
            ax.fill_between(band["tokens"], low, high, color=colour, alpha=opacity, linewidth=0, zorder=1.5)
        ax.plot(band["tokens"], band["loss"], color=colour, linewidth=0.9, linestyle="--", zorder=2)
    if len(ahead):
        ax.plot(ahead["tokens"], ahead["loss"], color="black", linewidth=0.8, linestyle="--", zorder=2)
        ax.axvline(float(ahead["tokens"].min()), **_ORIGIN)


def _turning_points(ax: Axes, panel: Frame) -> None:
    for _, mark in panel[panel["kind"].isin(DRAWN)].iterrows():
        colour, seen = figures.colour(mark["bits"]), mark["kind"] == "observed"
        if seen and math.isfinite(mark["low"]) and math.isfinite(mark["high"]):
            ax.axvspan(mark["low"], mark["high"], color=colour, alpha=0.13, linewidth=0, zorder=0)
        ax.axvline(mark["tokens"], color=colour, linestyle="-" if seen else ":", linewidth=1.0, zorder=1)


def _notes(panel: Frame, above: list[float], top: float) -> list[str]:
    """What the panel does not show, in words, at its lower left, where falling curves leave space."""
    after = panel[panel["kind"] == "after"]
    notes = [f"{_list(above)}: above the axis"] if above else []
    clipped = after[(after["loss"] > top) & ~after["bits"].isin(above)]
    notes += [f"{_list([bits])}: {len(group)} points above the axis" for bits, group in clipped.groupby("bits")]
    if (panel["kind"] == "ahead").any():
        banded = set(panel.loc[panel["kind"] == "band", "bits"])
        if missing := [bits for bits in after["bits"].unique() if bits not in banded]:
            notes.append(f"{_from(sorted(missing), after['bits'].unique())}: band reaches the dashed line")
    return notes


def _from(some: Sequence[float], bits: Iterable[float]) -> str:
    """Bit-widths in words, in short where they are the highest of all."""
    if len(some) > 2 and sorted(bits)[-len(some) :] == list(some):
        return f"{some[0]:.0f} bits and more"
    return _list(some)


def _list(bits: Sequence[float]) -> str:
    return f"{', '.join(f'{value:.0f}' for value in bits)} bits"


def _legend(figure: Figure, table: Frame) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Line2D([], [], marker="o", label="before quantization", **RING)]
    for bits, size in mark_sizes(table).items():
        look: dict[str, Any] = {
            "color": figures.colour(bits),
            "markersize": size,
            "markeredgewidth": 0,
            "linestyle": "none",
        }
        handles.append(Line2D([], [], marker="o", label=f"{bits:.0f} bits", **look))
    kinds = set(table["kind"])
    if "ahead" in kinds:
        handles.append(Line2D([], [], label="origin of the forecast", **_ORIGIN))
        handles.append(Line2D([], [], color="grey", linewidth=0.9, linestyle="--", label="forecast, median"))
    if "band" in kinds:
        handles.append(Patch(color="grey", alpha=_INNER + _OUTER, linewidth=0, label="forecast, 50 %"))
        handles.append(Patch(color="grey", alpha=_OUTER, linewidth=0, label="forecast, 90 %"))
    if "observed" in kinds:
        handles.append(Line2D([], [], color="grey", linewidth=1.2, label="turn observed"))
        handles.append(Patch(color="grey", alpha=0.2, linewidth=0, label="its interval"))
    if "predicted" in kinds:
        handles.append(Line2D([], [], color="grey", linestyle=":", linewidth=1.2, label="turn predicted by the fit"))
    if "forecast" in kinds:
        handles.append(Line2D([], [], color="grey", linestyle=":", linewidth=1.2, label="turn forecast"))
    figures.legend(figure, handles, most=5, handlelength=1.8)
