"""The figures of the paper, each as wide as a column: a table of what is shown, and how it is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pandas as pd

from ptq_eval.report.common import figures
from ptq_eval.report.common.numbers import count
from results.paper import study
from results.precision import findings

WIDTH, HEIGHT = 3.4, 1.65
"""Inches of a column, and of a panel in it."""
_SHOWN = {"constant": ("-", "o"), "annealed": ("--", "s"), "cosine": (":", "^"), "linear": ("-.", "D")}
_MOST = 3
"""Panels of a figure with one for each text and size."""
_WIDE = 50
"""The range of a logarithmic axis from which it is labelled at powers of ten alone."""
_SPLIT = 3
"""The bit-width of figures that show one alone."""


def all_of(runs: pd.DataFrame, against: pd.DataFrame) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """(what draws each figure, its table), by name."""
    drawn = {"delta": delta, "turns": turns, "against": difference, "learned": learned}
    tables = {
        "delta": _means(runs[runs["ending"].isin(["constant", "annealed"])], "delta"),
        "turns": _means(runs[runs["ending"] == "annealed"], "loss_q", "loss_fp"),
        "against": against[against["bits"] == _SPLIT],
        "learned": runs[(runs["bits"] == _SPLIT) & (runs["delta"] > 0) & (runs["tokens_per_param"] >= study.FIRST)],
    }
    return {name: SimpleNamespace(draw=function) for name, function in drawn.items()}, tables


def _means(runs: pd.DataFrame, *names: str) -> pd.DataFrame:
    """Means over runs and twice their standard errors, of the widths that the text speaks of."""
    keys = ["corpus", "params", "ending", "bits", "tokens_per_param"]
    cells = runs[runs["bits"].isin(study.BITS)].groupby(keys)[list(names)]
    return cells.mean().join(2 * cells.sem(), rsuffix="_error").reset_index()


def _models(table: pd.DataFrame) -> list[tuple[str, float]]:
    """At most `_MOST` texts and sizes, those with the most rows."""
    return sorted(table.groupby(["corpus", "params"]).size().sort_values(ascending=False, kind="stable").index[:_MOST])


def _stack(rows: int, **options: Any) -> tuple[Any, Sequence[Any]]:
    """A figure of panels under each other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT * rows + 0.4))
    return figure, figure.subplots(rows, 1, squeeze=False, **options)[:, 0]


def _log_y(panel: Any) -> None:
    """A logarithmic vertical axis with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.set_yscale("log")
    low, high = panel.get_ylim()
    subs = (1.0,) if high / low > _WIDE else (1.0, 2.0, 5.0)
    panel.yaxis.set_major_locator(LogLocator(subs=subs))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Any, labels: Mapping[str, Mapping[str, Any]], columns: int = 4) -> None:
    from matplotlib.lines import Line2D

    figures.legend(figure, [Line2D([], [], label=name, **style) for name, style in labels.items()], columns)


def _ratio_axis(panel: Any, table: pd.DataFrame) -> None:
    figures.log_x(panel, *figures.span(table["tokens_per_param"]), tokens=False)


def delta(table: pd.DataFrame) -> Any:
    """δ against D/N at a constant rate and of annealed branches, a panel for each model."""
    models = _models(table)
    figure, axes = _stack(len(models), sharex=True)
    table = table[(table["delta"] > 0) & (table["tokens_per_param"] >= study.FIRST / 2)]
    for (corpus, params), panel in zip(models, axes):
        own = table[(table["corpus"] == corpus) & (table["params"] == params)]
        for (ending, bits), line in own.groupby(["ending", "bits"]):
            style, mark = _SHOWN[str(ending)]
            panel.errorbar(
                line["tokens_per_param"] * (1.03 if ending == "annealed" else 1), line["delta"], line["delta_error"],
                color=figures.colour(bits), fmt=f"{style}{mark}", markersize=3, linewidth=0.9, elinewidth=0.7,
                markerfacecolor="white" if ending == "annealed" else None,
            )  # fmt: skip
        _log_y(panel)
        _ratio_axis(panel, table)
        panel.set_title(f"{corpus}, N = {count(params)}")
        panel.set_ylabel("δ, nats per token")
    axes[-1].set_xlabel("D/N")
    _legend(figure, {**_widths(), **_endings(("constant", "annealed"))}, 5)
    return figure


def _widths() -> dict[str, dict[str, Any]]:
    return {f"{bits} bits": {"color": figures.colour(bits), "linewidth": 1.5} for bits in study.BITS}


def _endings(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    hollow = {"markerfacecolor": "white"}
    return {
        name: {"color": "0.3", "linestyle": _SHOWN[name][0], "marker": _SHOWN[name][1], "markersize": 3}
        | (hollow if name == "annealed" else {})
        for name in names
    }


def turns(table: pd.DataFrame) -> Any:
    """Loss before and after quantization against D/N along annealed branches, a panel for each model."""
    models = _models(table)
    figure, axes = _stack(len(models), sharex=True)
    table = table[table["tokens_per_param"] >= study.FIRST / 2]
    for (corpus, params), panel in zip(models, axes):
        own = table[(table["corpus"] == corpus) & (table["params"] == params)]
        before = own.drop_duplicates("tokens_per_param")
        panel.plot(before["tokens_per_param"], before["loss_fp"], "-o", color="0.2", markersize=3, linewidth=0.9)
        for bits, line in own.groupby("bits"):
            panel.errorbar(
                line["tokens_per_param"], line["loss_q"], line["loss_q_error"], color=figures.colour(bits),
                fmt="-s", markersize=3, linewidth=0.9, elinewidth=0.7,
            )  # fmt: skip
        _ratio_axis(panel, table)
        panel.set_title(f"{corpus}, N = {count(params)}")
        panel.set_ylabel("loss, nats per token")
    axes[-1].set_xlabel("D/N")
    before = {"before quantization": {"color": "0.2", "marker": "o", "markersize": 3}}
    _legend(figure, {**before, **_widths()})
    return figure


def difference(table: pd.DataFrame) -> Any:
    """Losses minus those at a constant rate against D/N, a panel for each ending."""
    endings = [name for name in _SHOWN if name in set(table["ending"]) and name != "linear"]
    figure, axes = _stack(len(endings), sharex=True)
    for ending, panel in zip(endings, axes):
        own = table[table["ending"] == ending]
        panel.axhline(0, color="0.6", linewidth=0.6)
        for place, (name, (_, colour, mark)) in enumerate(findings.COMPARED.items()):
            panel.errorbar(
                own["tokens_per_param"] * 1.05 ** (place - 1), own[name], 2 * own[f"{name}_error"], color=colour,
                fmt=f"-{mark}", markersize=3, linewidth=0.9, elinewidth=0.9,
            )  # fmt: skip
        _ratio_axis(panel, table)
        panel.set_title(f"{ending} minus constant, {_SPLIT} bits")
        panel.set_ylabel("nats per token")
    axes[-1].set_xlabel("D/N")
    _legend(figure, {label: {"color": c, "marker": m, "markersize": 3} for label, c, m in findings.COMPARED.values()})
    return figure


def learned(table: pd.DataFrame) -> Any:
    """δ against the loss before quantization: a point is a run at one checkpoint, lines join a run's trunk."""
    models = _models(table)
    figure, axes = _stack(len(models))
    for (corpus, params), panel in zip(models, axes):
        own = table[(table["corpus"] == corpus) & (table["params"] == params)]
        for _, trunk in own[own["ending"] == "constant"].groupby(study.RUN):
            trunk = trunk.sort_values("loss_fp")
            panel.plot(trunk["loss_fp"], trunk["delta"], "-", color="0.6", linewidth=0.7)
        for place, (ending, (_, mark)) in enumerate(_SHOWN.items()):
            points = own[own["ending"] == ending]
            colour = "0.4" if ending == "constant" else figures.MORE_COLOURS[place]
            panel.plot(points["loss_fp"], points["delta"], mark, color=colour, markersize=3)
        _log_y(panel)
        panel.invert_xaxis()
        panel.set_title(f"{corpus}, N = {count(params)}, {_SPLIT} bits")
        panel.set_ylabel("δ, nats per token")
    axes[-1].set_xlabel("loss before quantization, nats per token")
    styles = {
        name: {"color": "0.4" if name == "constant" else figures.MORE_COLOURS[place], "marker": mark, "linestyle": "",
               "markersize": 3}
        for place, (name, (_, mark)) in enumerate(_SHOWN.items())
    }  # fmt: skip
    _legend(figure, styles)
    return figure
