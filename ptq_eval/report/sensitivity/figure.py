"""Damage of layers, predicted and measured: a row of four panels for the first and the last checkpoint of each run.

The panels: measured against predicted δ, and KL, one point per layer and bit-width; the layers with the largest damage
at one width; and the damage of all layers together over bits, with prediction and bound.  A δ that is negative or too
small for the axis is drawn hollow in a strip below it, in a row for its bit-width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ptq_eval.report.common import figures, tables
from ptq_eval.report.common.data import Frame
from ptq_eval.report.common.numbers import number, short
from ptq_eval.results.points import rows_of
from ptq_eval.theory import ALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BARS = 10
MAX_ROWS = 6
_STRIP, _GAP = 0.045, 0.02
"""Shares of a panel's height: a row of the strip, and the margin around all rows."""
NUMBERS = ("delta", "delta_se", "kl", "kl_se", "predicted", "predicted_se", "spread", "scatter")
COLUMNS = ("checkpoint", "kind", "layer", "bits", *NUMBERS, "bound", "bar")


def data(record: Mapping[str, Any], quantizer: str) -> Frame:
    """Everything drawn; `kind` is "layer" or "joint", `bar` marks the rows drawn as bars."""
    found = []
    for entry in _ends(record):
        rows = [row for row in entry["rows"] if row["quantizer"] == quantizer]
        if not rows:
            continue
        own: Any = pd.DataFrame([{name: row[name] for name in ("layer", "bits", *NUMBERS)} for row in rows])
        own[list(NUMBERS)] = own[list(NUMBERS)].apply(pd.to_numeric, errors="coerce")
        own["kind"] = np.where(own["layer"] == ALL, "joint", "layer")
        limits = {b["measured"]: b for b in entry["bounds"] if b["quantizer"] == quantizer}
        own["bound"] = [_bound(limits["delta"], row) for row in rows_of(own)]
        own["bar"] = _bars(own, telling_width(entry, quantizer))
        own["checkpoint"] = tables.checkpoint(entry)
        found.append(own[list(COLUMNS)])
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=list(COLUMNS))


def _ends(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The first and the last checkpoint of each run, `MAX_ROWS` in all."""
    by_run: dict[str, list[Mapping[str, Any]]] = {}
    for entry in record["checkpoints"]:
        by_run.setdefault(entry["run"], []).append(entry)
    ends = [entry for own in by_run.values() for entry in (own[:1] if len(own) == 1 else [own[0], own[-1]])]
    return ends[:MAX_ROWS]


def _bound(limit: Mapping[str, Any], row: Mapping[str, Any]) -> float | None:
    if row["kind"] != "joint" or limit["lowest"] is None or row["bits"] < limit["lowest"]:
        return None
    return number(limit["constant"]) * 4.0 ** -row["bits"]


def telling_width(entry: Mapping[str, Any], quantizer: str) -> int:
    """The lowest width where the second order holds for KL; the lowest of all where it holds nowhere."""
    widths = [row["bits"] for row in entry["rows"] if row["quantizer"] == quantizer]
    lowest = [b["lowest"] for b in entry["bounds"] if (b["quantizer"], b["measured"]) == (quantizer, "kl")]
    return next((width for width in lowest if width is not None), min(widths))


def _bars(own: Frame, width: int) -> Any:
    """Which rows are the layers with the largest KL at one width."""
    layers = own[(own["kind"] == "layer") & (own["bits"] == width)]
    return own.index.isin(layers.nlargest(BARS, "kl").index)


def draw(table: Frame) -> Figure:
    """Draw what `data` returned."""
    if table.empty:
        return figures.nothing("No layer was measured.")
    names = list(dict.fromkeys(table["checkpoint"]))
    figure, axes = figures.panels(len(names), 4)
    for row, name in zip(axes, names):
        own = table[table["checkpoint"] == name]
        _scatter(row[0], own, "delta")
        _scatter(row[1], own, "kl")
        _layers(row[2], own[own["bar"]])
        _widths(row[3], own[own["kind"] == "joint"].sort_values("bits"))
        row[0].set_title(name)
        row[0].set_ylabel("δ of one layer, measured\n(nats per token)")
        row[1].set_ylabel("KL of one layer, measured\n(nats per token)")
        row[3].set_ylabel("all layers (nats per token)")
    for ax, words in zip(axes[-1], ("predicted (nats per token)",) * 2 + ("KL (nats per token)", "bits")):
        ax.set_xlabel(words)
    _legend(figure, table)
    return figure


def _scatter(ax: Axes, own: Frame, column: str) -> None:
    layers = own[(own["kind"] == "layer") & (own["predicted"] > 0)]
    if layers.empty:
        ax.set_axis_off()
        return
    low, high = float(layers["predicted"].min()) / 3, float(layers["predicted"].max()) * 4
    hidden = layers[~(layers[column] > low)]
    strip = sorted(hidden["bits"].unique())
    share = len(strip) * _STRIP + (_GAP if strip else 0)
    bottom = low / (high / low) ** (share / (1 - share))
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(bottom, high))
    ax.plot([low, high], [low, high], color="0.6", linewidth=0.7, zorder=0)
    for bits, group in layers.groupby("bits"):
        seen = group[group[column] > low]
        error = seen[f"{column}_se"].fillna(0)
        lower = np.minimum(error, seen[column] - low)
        marks: dict[str, Any] = {"fmt": "o", "color": figures.colour(float(bits)), "markersize": 2.6}
        ax.errorbar(seen["predicted"], seen[column], yerr=[lower, error], elinewidth=0.5, markeredgewidth=0, **marks)
    if strip:
        _strip(ax, hidden, strip, low)


def _strip(ax: Axes, hidden: Frame, widths: list[float], floor: float) -> None:
    """Draw what a logarithmic axis cannot show as hollow marks in a band below it, one row per width."""
    ends = ax.get_ylim()
    ax.axhspan(ends[0], floor, color="0.95", linewidth=0, zorder=0)
    for row, bits in enumerate(reversed(widths)):
        group = hidden[hidden["bits"] == bits]
        places, hollow = np.full(len(group), (row + 0.5) * _STRIP), {"markerfacecolor": "none", "markeredgewidth": 0.6}
        look: dict[str, Any] = {"color": figures.colour(float(bits)), "markersize": 2.6, **hollow}
        ax.plot(group["predicted"], places, "o", transform=ax.get_xaxis_transform(), **look)
    ax.set_yticks([tick for tick in ax.get_yticks() if floor <= tick <= ends[1]])
    ax.set_yticks([tick for tick in ax.get_yticks(minor=True) if floor <= tick <= ends[1]], minor=True)
    ax.set_ylim(*ends)


def _layers(ax: Axes, bars: Frame) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if bars.empty:
        ax.set_axis_off()
        return
    bars = bars.sort_values("kl")
    colour, places = figures.colour(float(bars["bits"].iloc[0])), np.arange(len(bars))
    ax.barh(places, bars["kl"], xerr=bars["kl_se"].fillna(0), color=colour, alpha=0.6, error_kw={"elinewidth": 0.6})
    ax.plot(bars["predicted"], places, "D", color="black", markersize=2.6, markeredgewidth=0)
    ax.xaxis.set_major_locator(MaxNLocator(3))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    ax.set_yticks(places, _shortened(list(bars["layer"])), fontsize=5.5)
    ax.set_title(f"{bars['bits'].iloc[0]:.0f} bits, largest layers")


def _shortened(names: list[str]) -> list[str]:
    """Layer names without their common prefix."""
    words = [name.split(".") for name in names]
    common = 0
    while all(len(parts) > common + 1 for parts in words) and len({parts[common] for parts in words}) == 1:
        common += 1
    return [".".join(parts[common:]) for parts in words]


def _widths(ax: Axes, joint: Frame) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    bits = joint["bits"].to_numpy(float)
    if not (joint["predicted"] > 0).any():
        ax.set_axis_off()
        return
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    ax.yaxis.set_minor_formatter(NullFormatter())
    roundings = np.hypot(joint["spread"], joint["scatter"].fillna(0))
    low, high = joint["predicted"] - roundings, joint["predicted"] + roundings
    floor = float(joint[["predicted", "kl"]].where(lambda values: values > 0).min().min()) / 4
    ax.fill_between(bits, np.maximum(low, floor / 10), high, color="0.85", linewidth=0, zorder=0)
    ax.plot(bits, joint["predicted"], color="black", linewidth=0.9)
    limit = joint.dropna(subset=["bound"])
    ax.plot(limit["bits"], limit["bound"].astype(float), color="#D55E00", linewidth=0.9, linestyle="--")
    ax.plot(
        bits, joint["kl"], "s", color="#0072B2", zorder=4, markersize=5, markerfacecolor="none", markeredgewidth=0.9
    )
    positive = joint[joint["delta"] > floor]
    lower = np.minimum(positive["delta_se"].fillna(0), positive["delta"] - floor / 10)
    upper = positive["delta_se"].fillna(0)
    ax.errorbar(positive["bits"], positive["delta"], yerr=[lower, upper], fmt="o", color="black", elinewidth=0.7)
    ax.set_ylim(bottom=floor)
    lost = joint.loc[~(joint["delta"] > floor), "bits"]
    if len(lost):
        edge = {"transform": ax.get_xaxis_transform(), "markerfacecolor": "none", "markersize": 3.6}
        ax.plot(lost, np.full(len(lost), 0.03), "o", color="black", **edge)
    ax.set_xticks(bits)


def _legend(figure: Figure, table: Frame) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Line2D([], [], color=figures.colour(float(bits)), marker="o", linestyle="none", label=f"{bits:.0f} bits")
        for bits in sorted(table["bits"].unique())
    ]
    hollow: dict[str, Any] = {"color": "0.4", "markerfacecolor": "none", "linestyle": "none"}
    square: dict[str, Any] = {**hollow, "color": "#0072B2", "markersize": 5}
    handles += [
        Line2D([], [], marker="o", label="δ ≤ 0 or below the axis", **hollow),
        Line2D([], [], color="black", marker="o", linestyle="none", label="δ, all layers"),
        Line2D([], [], marker="s", label="KL, all layers", **square),
        Line2D([], [], color="black", marker="D", markersize=2.6, linewidth=0.9, label="predicted"),
        Patch(color="0.85", linewidth=0, label="± roundings (of δ)"),
        Line2D([], [], color="#D55E00", linestyle="--", label=r"bound $C\,4^{-\mathrm{bits}}$"),
    ]
    figures.legend(figure, handles, most=6)
