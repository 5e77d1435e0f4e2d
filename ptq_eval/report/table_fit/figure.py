"""A law fitted to a user's table: measured against fitted values, and the residuals.

The first panel has measured values over fitted ones; a law that holds puts them on the line.  The others show the
residual, relative to the fitted value, over each variable of the law: a trend there is something that the law misses.
Values that are not positive have no place on a logarithmic axis: they are drawn at its lower edge and counted there.

Every fit has a row of its own, and the figure grows with them, up to `MAX_ROWS` rows; the table has all of them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ptq_eval.report.common import figures
from ptq_eval.report.common.data import Frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = (
    "fit", "response", "row", "variables", "measured", "se", "fitted", "residual", "relative_residual",
    "standard_residual", "leverage",
)  # fmt: skip
MAX_ROWS = 8
"""Rows of panels: more groups than this are in the table, not in the figure."""
_NAMES = {"N": "N (parameters)", "D": "D (tokens)", "P": "bits", "S": "phase (1 peak, 2 decayed)", "G": "group size"}
_GREY = "#666666"
_WIDE = 8.0
_ROOM = 1.3
_DECADES = 2.0
"""Powers of ten from which an axis is labelled at powers of ten alone."""


def data(found: Any) -> Frame:
    """One row per point of every fit (a `DataFit`): its variables, measured and fitted value, residuals, leverage.

    `residual` is measured − fitted in nats per token (for a formula, in its response's unit), `relative_residual` the
    same over the fitted value and `standard_residual` in units of its standard error, as the fit weighs it; `leverage`
    is between 0 and 1.
    """
    frames = []
    for part in found.parts:
        if not part.result.identified:
            continue
        columns, y = part.mapped.data, part.mapped.data[part.law.response]
        f = np.broadcast_to(part.law.predict(part.result.values, columns), len(y))
        frame = pd.DataFrame({name: columns[name] for name in part.law.columns})
        frames.append(
            frame.assign(
                fit=part.label,
                response=part.law.response,
                row=part.mapped.rows + 1,
                variables=" ".join(part.law.columns),
                measured=y,
                se=columns.get("se", np.full(len(y), math.nan)),
                fitted=f,
                residual=y - f,
                relative_residual=(y - f) / np.abs(f),
                standard_residual=part.result.residuals,
                leverage=part.result.leverage,
            )
        )
    if not frames:
        return pd.DataFrame(columns=list(COLUMNS))
    table = pd.concat(frames, ignore_index=True)
    return table[[*COLUMNS, *(name for name in table if name not in COLUMNS)]]


def draw(table: Frame) -> Figure:
    """Draw what `data` returned."""
    if table.empty:
        return figures.nothing("No law could be fitted.")
    every = list(table.groupby("fit", sort=False))
    groups = every[:MAX_ROWS]
    columns = 1 + max(len(_varying(group)) for _, group in groups)
    figure, axes = figures.panels(len(groups), columns)
    if len(every) > MAX_ROWS:
        figure.suptitle(f"The first {MAX_ROWS} of {len(every)} fits; all are in the table.", fontsize=8)
    for row, (label, group) in zip(axes, groups):
        _against(row[0], group)
        row[0].set_title(str(label), loc="left")
        for ax, name in zip(row[1:], _varying(group)):
            _residuals(ax, group, name)
        for ax in row[1 + len(_varying(group)) :]:
            ax.set_axis_off()
    return figure


def _varying(group: Frame) -> list[str]:
    return [name for name in str(group["variables"].iloc[0]).split() if group[name].nunique() > 1]


def _against(ax: Axes, group: Frame) -> None:
    x, y = group["fitted"].to_numpy(float), group["measured"].to_numpy(float)
    positive = (x > 0) & (y > 0)
    response = str(group["response"].iloc[0])
    what, unit = {"delta": "δ", "loss": "loss"}.get(response, response), " (nats per token)"
    ours = response in ("delta", "loss")
    both = np.concatenate([x[positive], y[positive]]) if positive.any() else np.concatenate([x, y])
    low, high = both.min(), both.max()
    if ours and positive.any() and high / low > _WIDE:
        _log_both(ax, low / _ROOM, high * _ROOM)
        lost = x[~positive & (x > 0)]
        if len(lost):  # an empty line that is not clipped has an extent at the origin, which breaks the layout
            hollow: dict[str, Any] = {
                "color": _GREY,
                "markerfacecolor": "none",
                "markeredgewidth": 0.6,
                "markersize": 3.2,
            }
            ax.plot(lost, np.full(len(lost), 0.02), "v", transform=ax.get_xaxis_transform(), **hollow)
            words = {"transform": ax.transAxes, "verticalalignment": "top", "fontsize": 6, "color": _GREY}
            ax.text(0.03, 0.98, f"▽ {len(lost)} measured at or below zero", **words)
    else:
        positive = np.isfinite(x) & np.isfinite(y)
        both = np.concatenate([x[positive], y[positive]])
        low, high = both.min(), both.max()
    ends = np.array([low, high])
    ax.plot(ends, ends, "-", color="black", linewidth=0.7)
    error = group["se"].to_numpy(float)[positive]
    known = {"yerr": error} if np.isfinite(error).any() else {}
    ax.errorbar(
        x[positive], y[positive], fmt="o", color=figures.COLOURS[8], elinewidth=0.6, alpha=0.7, markersize=2.6, **known
    )
    ax.set_xlabel(f"{what} fitted{unit * ours}")
    ax.set_ylabel(f"{what} measured{unit * ours}")


def _log_both(ax: Axes, low: float, high: float) -> None:
    """Both axes logarithmic with the same limits and few labels."""
    from matplotlib.ticker import LogFormatterMathtext, LogLocator, NullFormatter

    decades = math.log10(high / low)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(low, high)
    ax.set_ylim(low, high)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0,) if decades >= _DECADES else (1.0, 3.0), numticks=6))
        axis.set_major_formatter(LogFormatterMathtext() if decades >= _DECADES else lambda value, _: f"{value:g}")
        axis.set_minor_formatter(NullFormatter())


def _residuals(ax: Axes, group: Frame, name: str) -> None:
    x, residual = group[name], 100 * group["relative_residual"]
    ax.axhline(0, color="black", linewidth=0.7)
    ax.plot(x, residual, "o", color=figures.COLOURS[8], alpha=0.7, markersize=2.6, markeredgewidth=0)
    bound = float(np.nanmax(np.abs(residual))) * 1.1
    if bound > 100 * _WIDE:
        ax.set_yscale("symlog", linthresh=100)
    ax.set_ylim(-bound, bound)
    if x.min() > 0 and (name in ("N", "D") or x.max() > 100 * x.min()):
        figures.log_x(ax, *figures.span(x), tokens=True)
    ax.set_xlabel(_NAMES.get(name, name))
    ax.set_ylabel("residual (% of fitted)")
