"""Damage of parts: KL of each part over its bits, and what each byte saved costs; a row for each checkpoint.

The first panel has one line per part, all together, and the sum of the parts; the second the KL of a part against the
bytes that it saves.  Neither shows δ, which the table has: δ of a small rounding moves along the slope of the loss too,
and may be negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from ptq_eval.report.common import figures, tables
from ptq_eval.report.common.data import Frame
from ptq_eval.report.common.numbers import number
from ptq_eval.theory import ALL, REMAINDER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_ROWS = 6
COLUMNS = ("panel", "checkpoint", "part", "quantizer", "bits", "bits_per_weight", "megabytes_saved", "kl", "kl_se")
STYLES = {
    "embedding": ("#0072B2", "s"), "head": ("#E69F00", "^"), "embedding and head": ("#0072B2", "P"),
    "attention": ("#009E73", "o"), "mlp": ("#CC79A7", "D"), "other": ("#7F7F7F", "v"),
    ALL: ("black", "X"), "sum": ("0.5", "_"),  # seen with one bit-width too
}  # fmt: skip


def data(record: Mapping[str, Any]) -> Frame:
    """Everything drawn: a row per part, quantizer and width; `sum` adds up the parts."""
    found = []
    for entry in _ends(record):
        name = tables.checkpoint(entry)
        rows: Any = pd.DataFrame(entry["rows"])
        rows = rows[rows["part"] != REMAINDER]
        for quantizer, own in rows.groupby("quantizer", sort=False):
            single = own[own["part"] != ALL].groupby("bits")["kl"].sum()
            size = own[own["part"] == ALL].set_index("bits")
            table = own.assign(megabytes_saved=own["bytes_saved"] / 1e6)
            total = pd.DataFrame({"part": "sum", "bits": single.index, "kl": single.to_numpy()})
            total["bits_per_weight"] = size.loc[single.index, "bits_per_weight"].to_numpy()
            both = pd.concat([table, total], ignore_index=True)
            both["panel"], both["checkpoint"], both["quantizer"] = f"{name}, {quantizer}", name, quantizer
            found.append(both.reindex(columns=list(COLUMNS)))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=list(COLUMNS))


def _ends(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The first and the last checkpoint of each run."""
    by_run: dict[str, list[Mapping[str, Any]]] = {}
    for entry in record["checkpoints"]:
        by_run.setdefault(entry["run"], []).append(entry)
    return [entry for own in by_run.values() for entry in (own[:1] if len(own) == 1 else [own[0], own[-1]])]


def draw(table: Frame) -> Figure:
    """Draw what `data` returned."""
    if table.empty or not (table["kl"] > 0).any():
        return figures.nothing("No part was measured.")
    names = list(dict.fromkeys(table["panel"]))[:MAX_ROWS]
    figure, axes = figures.panels(len(names), 2, sharey="row")
    figure.set_figwidth(6.4)
    for row, name in zip(axes, names):
        own: Any = table[(table["panel"] == name) & (table["kl"] > 0)]
        _lines(row[0], own, "bits_per_weight")
        _lines(row[1], own[~own["part"].isin([ALL, "sum"])], "megabytes_saved")
        _widths(row[1], own)
        row[0].set_title(name)
        row[0].set_ylabel("KL (nats per token)")
    axes[-1][0].set_xlabel("bits per weight, scales included")
    axes[-1][1].set_xlabel("MB saved by the part, of 16-bit weights")
    _legend(figure, table)
    return figure


def _lines(ax: Axes, own: Any, column: str) -> None:
    ax.set_yscale("log")
    for part, line in own.groupby("part", sort=False):
        line = line.sort_values(column)
        colour, mark = STYLES[str(part)]
        error = line["kl_se"].fillna(0).clip(upper=0.9 * line["kl"])
        style = {"linestyle": "--" if part == "sum" else "-", "linewidth": 0.9, "elinewidth": 0.7}
        ax.errorbar(line[column], line["kl"], yerr=error, color=colour, marker=mark, **style)


def _widths(ax: Axes, own: Any) -> None:
    """The bits beside each point of the part that saves most, on the side where no other part is."""
    single = own[~own["part"].isin([ALL, "sum"])]
    largest = single.loc[single["megabytes_saved"].idxmax(), "part"]
    for row in single[single["part"] == largest].to_dict("records"):
        place = {"xytext": (5, -4), "textcoords": "offset points", "fontsize": 6.5}
        ax.annotate(f"{number(row['bits']):.0f} bits", (row["megabytes_saved"], row["kl"]), **place)
    ax.margins(x=0.18)


def _legend(figure: Figure, table: Frame) -> None:
    from matplotlib.lines import Line2D

    words = {ALL: "all together", "sum": "sum of the parts", "mlp": "MLP"}
    there = [part for part in STYLES if part in set(table["part"])]
    handles = [
        Line2D(
            [], [], color=STYLES[part][0], marker=STYLES[part][1], linestyle="--" if part == "sum" else "-",
            label=words.get(part, part),
        )
        for part in there
    ]  # fmt: skip
    figures.legend(figure, handles, most=6)
