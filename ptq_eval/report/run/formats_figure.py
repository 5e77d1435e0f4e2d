"""δ of every number format at the last checkpoint: by name, against effective bits, and against ideal bits.

A row of three panels per run; a colour and a mark per method.  The formats of the first panel are in order of the bits
that they store; in the other two, integers of one method are joined by a line, so that it shows whether other formats
are on their curve.  A law that was fitted on one of these axes is drawn there.  Hollow points are not significantly
different from zero, or below their noise floor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ptq_eval.report.common import figures
from ptq_eval.report.common.data import Frame, Study, formats_of, predict
from ptq_eval.report.common.numbers import count
from ptq_eval.report.common.tables import clear
from ptq_eval.report.run import formats
from ptq_eval.report.run.delta_figure import delta_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = (
    "run", "title", "params", "tokens", "method", "name", "family", "kind", "bits", "effective_bits", "ideal_bits",
    "delta", "delta_se", "shown",
)  # fmt: skip
AXES = {"effective_bits": "effective bits per weight", "ideal_bits": "ideal bits (of equal Gaussian error)"}
_FITTED = {"effective": "effective_bits", "gaussian": "ideal_bits"}
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_ROW = 0.14
"""Inches of a format's line in the first panel."""
_WIDTHS = (1.1, 1.0, 1.0)
CURVE_POINTS = 60


def data(study: Study) -> Frame:
    """Everything drawn: kind "measured", or "fit" for points of a fitted law; `shown` as in `delta_figure`."""
    rows = formats.last(study)
    if rows.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    points = rows.assign(run=rows["trajectory"], family=formats_of(rows), kind="measured")
    points["title"] = points["run"].map(study.title)
    points["shown"] = np.where(clear(points), "clear", "noise")
    parts = [points, *(_curve(study, own) for _, own in points.groupby(["run", "method"], sort=False))]
    return pd.concat([part for part in parts if len(part)], ignore_index=True)[list(COLUMNS)]


def _curve(study: Study, own: Frame) -> Frame:
    """The law of all formats of one method, at the D of its points, where one was fitted on a shared axis."""
    column = _FITTED.get(str(study.fit.get("bits_axis")))
    if column is None:
        return pd.DataFrame()
    first = own.iloc[0]
    entry, _ = study.fit_of(first["label"], first["run"], first["bits"])
    bits = np.linspace(own[column].min(), own[column].max(), CURVE_POINTS)
    tokens = np.full(1, first["tokens"])
    values = [predict(entry, params=first["params"], tokens=tokens, bits=float(at)) for at in bits]
    if any(value is None for value in values):
        return pd.DataFrame()
    head = {name: first[name] for name in ("run", "title", "params", "tokens", "method")}
    curve = pd.DataFrame({column: bits, "delta": np.concatenate(values)})  # type: ignore[arg-type]
    return curve.assign(**head, kind="fit", shown="curve").reindex(columns=list(COLUMNS))


def draw(table: Frame) -> Figure:
    """Draw what `data` returned."""
    if table.empty:
        return figures.nothing("Nothing but plain integers was measured.")
    runs = figures.runs_by_size(table)
    most = max(table[table["run"] == run]["name"].nunique() for run in runs)
    figure, axes = figures.panels(len(runs), 3, width_ratios=_WIDTHS)
    figure.set_size_inches(7.6, len(runs) * max(figures.PANEL[1], 0.5 + _ROW * most) + 0.5)
    styles = styles_of(table)
    for row, run in zip(axes, runs):
        mine = table[table["run"] == run]
        _by_name(row[0], mine, styles)
        for ax, column in zip(row[1:], AXES):
            _against(ax, mine, column, styles)
        first = mine.iloc[0]
        row[1].set_title(f"{first['title']}, D = {count(first['tokens'])}")
        row[1].set_ylabel("δ (nats per token)")
    axes[-1, 0].set_xlabel("δ (nats per token)")
    for ax, words in zip(axes[-1, 1:], AXES.values()):
        ax.set_xlabel(words)
    _legend(figure, table, styles)
    return figure


def styles_of(table: Frame) -> dict[str, dict[str, Any]]:
    """The colour and mark of every method."""
    names = list(dict.fromkeys(table["method"]))
    return {
        name: {"color": _COLOURS[i % len(_COLOURS)], "marker": figures.MARKS[i % len(figures.MARKS)]}
        for i, name in enumerate(names)
    }


def _by_name(ax: Axes, mine: Frame, styles: dict[str, dict[str, Any]]) -> None:
    """Formats by name from top to bottom, with their effective bits."""
    points = mine[mine["kind"] == "measured"]
    names = list(dict.fromkeys(points["name"]))
    stored = points.drop_duplicates("name").set_index("name")["effective_bits"]
    places = {name: -i for i, name in enumerate(names)}
    for method, own in points.groupby("method", sort=False):
        heights = own["name"].map(places)
        for shown, face in (("clear", styles[str(method)]["color"]), ("noise", "white")):
            part = own["shown"] == shown
            error = {"xerr": own.loc[part, "delta_se"].fillna(0), "elinewidth": 0.7}
            _marks(ax, own.loc[part, "delta"], heights[part], styles[str(method)], face, **error)
    delta_axis(ax, mine, "x")
    ax.set_yticks(list(places.values()), [f"{name}  {stored[name]:.2f}" for name in names], fontsize=6)
    ax.set_ylim(-len(names) + 0.4, 0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", color="0.92", linewidth=0.5)
    ax.set_axisbelow(True)


def _against(ax: Axes, mine: Frame, column: str, styles: dict[str, dict[str, Any]]) -> None:
    for method, own in mine.groupby("method", sort=False):
        style = styles[str(method)]
        points, curve = own[own["kind"] == "measured"], own[(own["kind"] == "fit") & own[column].notna()]
        integers = points[points["family"] == "int"].sort_values(column)
        ax.plot(integers[column], integers["delta"], color=style["color"], linewidth=0.8, alpha=0.6, zorder=1)
        ax.plot(curve[column], curve["delta"], color=style["color"], linewidth=0.9, linestyle=":", zorder=1)
        for shown, face in (("clear", style["color"]), ("noise", "white")):
            part = points[points["shown"] == shown]
            error = {"yerr": part["delta_se"].fillna(0), "elinewidth": 0.7}
            _marks(ax, part[column], part["delta"], style, face, **error)
    delta_axis(ax, mine, "y")


def _marks(ax: Axes, x: Any, y: Any, style: dict[str, Any], face: str, **error: Any) -> None:
    look = {"markerfacecolor": face, "markeredgewidth": 0.7, "markersize": 3.4, "zorder": 3}
    ax.errorbar(x, y, fmt=style["marker"], color=style["color"], **look, **error)


def _legend(figure: Figure, table: Frame, styles: dict[str, dict[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    handles: list[Any] = [
        Line2D([], [], linestyle="none", markersize=3.4, label=name, **style) for name, style in styles.items()
    ]
    handles.append(Line2D([], [], color="grey", linewidth=0.8, label="integers with a zero point, joined"))
    if (table["kind"] == "fit").any():
        handles.append(Line2D([], [], color="grey", linewidth=0.9, linestyle=":", label="law fitted to all formats"))
    if (table["shown"] == "noise").any():
        look: dict[str, Any] = {"color": "black", "marker": "o", "markerfacecolor": "none", "linestyle": "none"}
        handles.append(Line2D([], [], label="hollow: |δ| not beyond its noise", **look))
    figures.legend(figure, handles, most=4, handlelength=2.0)
