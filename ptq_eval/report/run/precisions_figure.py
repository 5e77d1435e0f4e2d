"""δ against D/N of weights with activations and cache: a panel per run, method and weight bits, a line per combination.

Points are measured, lines the form of three precisions that is ranked first.  Hollow points are not significantly
different from zero, or below their noise floor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ptq_eval.config.plan import FULL_BITS
from ptq_eval.laws.base import FitKind
from ptq_eval.laws.catalogue import law_for
from ptq_eval.report.common import figures
from ptq_eval.report.common.data import Frame, Study
from ptq_eval.report.common.numbers import number
from ptq_eval.report.common.tables import clear
from ptq_eval.report.run.delta_figure import delta_axis
from ptq_eval.report.run.precisions import name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "delta_of_three_precisions"
COLUMNS = (
    "panel", "quantizer", "run", "params", "bits", "activation_bits", "kv_bits", "name", "kind", "tokens",
    "tokens_per_param", "delta", "delta_se", "shown",
)  # fmt: skip
PER_ROW = 3
MOST_PANELS = 6
CURVE_POINTS = 40
_COLOURS = ("black", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9", "#882255")


def data(study: Study) -> Frame:
    """Everything drawn: kind "measured" or "fit"; `shown` as in `delta_figure`."""
    weighted = study.runtime["bits"].notna() if len(study.runtime) else slice(0)
    beside = study.runtime[weighted]
    places = set(zip(beside["trajectory"], beside["label"], beside["bits"]))
    rows: Frame = pd.concat([study.measured, beside])
    rows = rows[[place in places for place in zip(rows["trajectory"], rows["label"], rows["bits"])]]
    rows = rows[rows["tokens_per_param"] > 0]
    if rows.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    points = rows.assign(quantizer=rows["label"], run=rows["trajectory"], kind="measured")
    points["name"] = [name_of(row) for row in points.to_dict("records")]
    points["panel"] = [f"{q}, {b:.0f} bits, {run}" for q, b, run in points[["quantizer", "bits", "run"]].to_numpy()]
    points["shown"] = np.where(clear(points), "clear", "noise")
    points = points[points["panel"].isin(list(dict.fromkeys(points["panel"]))[:MOST_PANELS])]
    lines = [_curve(study, own) for _, own in points.groupby(["panel", "name"], sort=False)]
    found: Frame = pd.concat([part for part in (points, *lines) if len(part)], ignore_index=True)
    return found.reindex(columns=list(COLUMNS))


def _curve(study: Study, own: Frame) -> Frame:
    """The form ranked first over the D of one combination's points; nothing where none was fitted."""
    first, tokens = own.iloc[0], np.geomspace(own["tokens"].min(), own["tokens"].max(), CURVE_POINTS)
    form = _form(study, first)
    if form is None:
        return pd.DataFrame()
    theta = {name: number(value["value"]) for name, value in form["parameters"].items()}
    law = law_for(form["law"], [f"P_{x}" for x in ("w", "a", "kv") if f"gamma_post_{x}" in theta])
    bits = {"P_w": first["bits"], "P_a": first.get("activation_bits"), "P_kv": first.get("kv_bits")}
    served = {name: FULL_BITS if math.isnan(P := number(value)) else P for name, value in bits.items()}
    columns = {"N": np.full(CURVE_POINTS, float(first["params"])), "D": tokens}
    values = law.predict(theta, {**columns, **{name: np.full(CURVE_POINTS, P) for name, P in served.items()}})
    curve = pd.DataFrame({"tokens": tokens, "tokens_per_param": tokens / first["params"], "delta": values})
    head = ("panel", "quantizer", "run", "params", "bits", "activation_bits", "kv_bits", "name")
    return curve.assign(**{name: first.get(name) for name in head}, kind="fit", shown="curve")


def _form(study: Study, row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for entry in study.fit.get("precisions") or ():
        if (str(entry["trajectory"]), study.label_of(entry)) == (row["run"], row["quantizer"]):
            form = entry["forms"][0]
            return None if form["status_kind"] == FitKind.NOT_IDENTIFIED else form
    return None


def draw(table: Frame) -> Figure:
    """Draw what `data` returned."""
    if table.empty:
        return figures.nothing("No activations or cache were quantized together with weights.")
    panels = list(dict.fromkeys(table["panel"]))
    columns = min(len(panels), PER_ROW)
    figure, axes = figures.panels(math.ceil(len(panels) / columns), columns, sharex=True, sharey=True)
    styles = _styles(table)
    for ax, panel in zip(axes.flat, panels):
        delta_axis(ax, table)
        figures.log_x(ax, *figures.span(table["tokens_per_param"]), tokens=False)
        ax.set_title(panel)
        ax.set_xlabel("D/N (tokens per parameter)")
        _panel(ax, table[table["panel"] == panel], styles)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel("δ (nats per token)")
    _legend(figure, table, styles)
    return figure


def _beside(name: str) -> str:
    """What a combination rounds beside its weights: `A8KV4` of `W4A8KV4`."""
    return name.lstrip("W0123456789.")


def _styles(table: Frame) -> dict[str, dict[str, Any]]:
    """The colour and mark of each way to round activations and cache, weights alone first."""
    names = sorted({_beside(name) for name in table["name"]}, key=lambda name: (len(name), name))
    return {
        name: {"color": _COLOURS[i % len(_COLOURS)], "marker": figures.MARKS[i % len(figures.MARKS)]}
        for i, name in enumerate(names)
    }


def _panel(ax: Axes, mine: Frame, styles: Mapping[str, dict[str, Any]]) -> None:
    for name, own in mine.groupby("name", sort=False):
        style = styles[_beside(str(name))]
        curve = own[own["kind"] == "fit"]
        ax.plot(curve["tokens_per_param"], curve["delta"], color=style["color"], linewidth=0.8)
        for shown, face in (("clear", style["color"]), ("noise", "white")):
            points = own[own["shown"] == shown]
            look = {"markerfacecolor": face, "markeredgewidth": 0.7, "markersize": 3.2, "elinewidth": 0.7}
            error = points["delta_se"].fillna(0)
            ax.errorbar(points["tokens_per_param"], points["delta"], yerr=error, fmt=style["marker"],
                        color=style["color"], **look)  # fmt: skip


def _legend(figure: Figure, table: Frame, styles: Mapping[str, dict[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    named = {_beside(name): name for name in reversed(list(dict.fromkeys(table["name"])))}
    one = table["bits"].nunique() == 1
    label = lambda name: named[name] if one else name or "weights alone"
    handles: list[Any] = [
        Line2D([], [], linewidth=0.8, markersize=3.2, label=label(name), **style) for name, style in styles.items()
    ]
    if (table["kind"] == "fit").any():
        handles.append(Line2D([], [], color="grey", linewidth=0.8, label="line: law of three precisions"))
    if (table["shown"] == "noise").any():
        look: dict[str, Any] = {"color": "black", "marker": "o", "markerfacecolor": "none", "linestyle": "none"}
        handles.append(Line2D([], [], label="hollow: not significant, or below the noise floor", **look))
    figures.legend(figure, handles, most=4, handlelength=2.0)
