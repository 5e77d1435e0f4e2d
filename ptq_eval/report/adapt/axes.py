"""What the figures of `adapt` share: a quantity against the bits of the base, hollow before training, full after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ptq_eval.config.adapt import UNQUANTIZED_BITS
from ptq_eval.records import FULL_PRECISION
from ptq_eval.report.common import figures
from ptq_eval.report.common.data import Frame
from ptq_eval.report.common.numbers import short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEFORE, AFTER = "before training", "after training"


def moments(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Two rows for each of `rows` of a summary, one per moment."""
    head = ("quantizer", "bits", "seed")
    return [
        {**{one: row[one] for one in head}, "when": when, **{name: row[name + suffix] for name in names}}
        for row in rows
        for when, suffix in ((BEFORE, "_before"), (AFTER, ""))
    ]


def draw(table: Frame, names: Mapping[str, str]) -> Figure:
    """A panel for each column of `names`; points are seeds, lines their means, and each quantizer has its mark."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    methods = [name for name in dict.fromkeys(table["quantizer"]) if name != FULL_PRECISION] or [FULL_PRECISION]
    figure, panels = figures.panels(1, len(names))
    colours = {BEFORE: "0.55", AFTER: "#0072B2"}
    for ax, (name, label) in zip(panels[0], names.items()):
        for place, method in enumerate(methods):
            own = table[table["quantizer"].isin([method, FULL_PRECISION])]
            for when, colour in colours.items():
                part = own[own["when"] == when]
                mark = figures.MARKS[place % len(figures.MARKS)]
                ax.plot(part["bits"], part[name], mark, color=colour, markerfacecolor="none", alpha=0.8)
                means = part.groupby("bits")[name].mean()
                ax.plot(means.index, means, figures.LINES[place % len(figures.LINES)], color=colour, linewidth=0.9)
        ax.set_xscale("log", base=2)
        bits = sorted(set(table["bits"]))
        ax.set_xticks(bits, [str(one) if one != UNQUANTIZED_BITS else "none" for one in bits])
        ax.minorticks_off()
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0), numticks=8))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel("bits of the base")
        ax.set_ylabel(label)
    handles = [Line2D([], [], color=colour, label=when) for when, colour in colours.items()]
    marks = [
        Line2D([], [], color="black", marker=figures.MARKS[i % len(figures.MARKS)], linestyle="", label=method,
               markerfacecolor="none")
        for i, method in enumerate(methods)
    ]  # fmt: skip
    figures.legend(figure, [*handles, *marks], most=4)
    return figure
