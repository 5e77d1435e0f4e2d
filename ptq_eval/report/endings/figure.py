"""How much each ending differs from its reference at equal D: a panel for each configuration, a line for each ending.

Bars are two errors long on either side.  Full marks are decided, hollow ones are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from ptq_eval.report.common import figures
from ptq_eval.report.common.data import Frame
from ptq_eval.report.endings import words
from ptq_eval.results.endings import Decision
from ptq_eval.sampling import SIGNIFICANT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("panel", "bits", "line", "difference", "error", "decided")
PER_ROW = 4
MOST_LINES = 24
"""Endings that a panel has room for; the table has all of them."""
_DECIDED = (Decision.BETTER, Decision.WORSE)


def data(record: Mapping[str, Any]) -> Frame:
    """Everything drawn: a row for each difference, losses in nats per token; errors include what chance does."""
    names = words.method_names(record["rows"])
    several = len({row["group"] for row in record["rows"]}) > 1
    found = [
        {
            "panel": name,
            "bits": row["bits"],
            "line": f"{row['group']} {row['ending']}" if several else row["ending"],
            "difference": row["difference"],
            "error": words.error(row),
            "decided": row["decision"] in _DECIDED,
        }
        for row, name in zip(record["rows"], names)
        if row.get("decision") is not None
    ]
    table = pd.DataFrame(found, columns=list(COLUMNS))
    lines = list(dict.fromkeys(table["line"]))[:MOST_LINES]
    return table[table["line"].isin(lines)].reset_index(drop=True)


def draw(table: Frame) -> Figure:
    """Draw what `data` returned."""
    if table.empty:
        return figures.nothing("Nothing was compared.")
    names, lines = list(dict.fromkeys(table["panel"])), list(dict.fromkeys(table["line"]))
    columns = min(PER_ROW, len(names))
    rows = -(-len(names) // columns)
    figure, axes = figures.panels(rows, columns, sharey=True)
    figure.set_figheight(rows * (0.7 + 0.18 * len(lines)) + 0.4)
    for place, ax in enumerate(axes.flat):
        if place < len(names):
            _panel(ax, names[place], table[table["panel"] == names[place]], lines)
        else:
            ax.set_axis_off()
    axes[0][0].set_yticks(range(len(lines)), lines)
    axes[0][0].set_ylim(len(lines) - 0.5, -0.5)
    figure.supxlabel("difference in loss at equal D, nats per token", fontsize=8)
    return figure


def _panel(ax: Axes, name: str, own: Frame, lines: list[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.set_title(name)
    ax.axvline(0, color="0.6", linewidth=0.7)
    ax.xaxis.set_major_locator(MaxNLocator(3))
    for row in own.to_dict("records"):
        colour = "black" if row["bits"] is None or row["bits"] != row["bits"] else figures.colour(row["bits"])
        ax.errorbar(
            row["difference"],
            lines.index(row["line"]),
            xerr=SIGNIFICANT * row["error"],
            fmt="o",
            color=colour,
            markerfacecolor=colour if row["decided"] else "white",
            elinewidth=0.9,
        )
