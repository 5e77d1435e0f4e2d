"""The figures of a paper: those of the report, in parts that fit a column or a page.

A figure of one panel is as wide as a column, any other as the page.  The loss of one run under one quantizer, the most
telling, is a figure of its own; all of them are in the appendix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ptq_eval.laws.turning.verdict import VerdictKind
from ptq_eval.report.common import figures
from ptq_eval.report.common.data import Frame, Study
from ptq_eval.report.common.numbers import number
from ptq_eval.report.run import delta_figure, formats_figure, loss_figure
from ptq_eval.report.sensitivity import page as sensitivity

ACROSS, DOWN = 3, 3
"""Panels beside each other and rows of them that a page takes."""
_TELLING = (VerdictKind.OBSERVED, VerdictKind.FORECAST, VerdictKind.PREDICTED, VerdictKind.NOT_BEFORE)


@dataclass(frozen=True)
class Figure:
    """One file: its name without ending, what it shows (LaTeX), and whether it is as wide as the page."""

    name: str
    caption: str
    wide: bool


def drawn(study: Study, theory: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Frame], list[Figure]]:
    """(modules with `draw`, their tables, both by name; the figures of the appendix).

    `turn` and `delta` are always there, for the text; `formats` where number formats were measured.
    """
    loss, delta = loss_figure.data(study), delta_figure.data(study)
    found: dict[str, Any] = {"turn": loss_figure, "delta": delta_figure}
    tables = {"turn": _telling(study, loss), "delta": delta}
    appendix = []
    if study.has_formats:
        found["formats"], tables["formats"] = formats_figure, formats_figure.data(study)
        appendix.append(Figure("formats", r"$\delta$ against the effective bits of every number format", True))
    for number_, part in enumerate(_parts(loss), 1):
        name = f"loss{number_}"
        found[name], tables[name] = loss_figure, part
        appendix.append(Figure(name, "Loss before and after quantization of every run and quantizer", True))
    for name, figure in sensitivity.figures_of(theory).items() if theory else ():
        found[name] = SimpleNamespace(draw=figure.draw)
        tables[name] = figure.data(theory)
        appendix.append(Figure(name, "Damage of single layers, predicted from curvature and measured", True))
    return found, tables, appendix


def telling(study: Study) -> tuple[str, str] | None:
    """The trajectory and the configuration with the most telling answer, at the lowest bits; None without any."""
    order = {kind: place for place, kind in enumerate(_TELLING)}
    entries = [entry for entry in study.critical if study.label_of(entry) in study.panels]
    if not entries:
        return None
    best = min(entries, key=lambda e: (order.get(VerdictKind(e["verdict_kind"]), len(order)), number(e["bits"])))
    return str(best["run"]), study.label_of(best)


def _telling(study: Study, loss: Frame) -> Frame:
    if loss.empty:
        return loss
    run, label = telling(study) or (loss["run"].iloc[0], loss["quantizer"].iloc[0])
    part = loss[(loss["run"] == run) & (loss["quantizer"] == label)]
    return (
        part
        if len(part)
        else loss[(loss["run"] == loss["run"].iloc[0]) & (loss["quantizer"] == loss["quantizer"].iloc[0])]
    )


def _parts(loss: Frame) -> list[Frame]:
    """The panels of all runs and quantizers, a page at a time."""
    if loss.empty:
        return []
    runs, labels = figures.runs_by_size(loss), list(dict.fromkeys(loss["quantizer"]))
    found = []
    for down in range(0, len(runs), DOWN):
        for across in range(0, len(labels), ACROSS):
            some = loss["run"].isin(runs[down : down + DOWN]) & loss["quantizer"].isin(labels[across : across + ACROSS])
            found += [loss[some]] if some.any() else []
    return found
