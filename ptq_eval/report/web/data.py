"""What `report.html` carries for its figures, its table of measurements and its downloads.

The files are embedded as they are written, and the figures are drawn from them: what a reader downloads is what the
page shows.  Beside them are only facts that the files lack: labels, titles, colours, the ends of axes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from ptq_eval.laws.forecast.backtest import long_enough
from ptq_eval.report.backtest import figure as fan_figure
from ptq_eval.report.common import figures, tables
from ptq_eval.report.common.data import FULL_PRECISION, NUMBERS, Frame, Study, labels, runtime_names
from ptq_eval.report.common.files import csv_text, json_text
from ptq_eval.report.mixed import figure as mixed_figure
from ptq_eval.report.run import curves, delta_figure, formats_figure, loss_figure
from ptq_eval.report.sensitivity import page as sensitivity
from ptq_eval.results.points import rows_of

ASKED = "asked"
_DIGITS = 6
"""Significant digits of drawn bands, which are estimates."""
MOST_TOGGLES = 8
"""More configurations than this are switched by method."""


def interactive(name: str, files: Collection[str] = ()) -> str | None:
    """The figure that the page draws in place of the picture `name`; None where it shows the picture.

    files: what the page carries, by name.
    """
    if name.startswith(f"{ASKED}_"):
        return ASKED
    return name if name in _MAKERS or f"figures/{name}.csv" in files else None


def embedded(
    study: Study, known: Mapping[str, Frame], records: Sequence[Mapping[str, Any] | None] = ()
) -> dict[str, Any]:
    """Everything that the page carries; `known`: the data of figures, by name; `records`: of `report.studies`."""
    drawn = {name: known[name] if name in known else make(study) for name, make in _MAKERS.items()}
    drawn |= _of_studies(*records)
    drawn = {name: frame for name, frame in drawn.items() if len(frame)}
    return {
        "files": {
            "degradation.csv": csv_text(study.table),
            "fit.json": json_text(study.fit),
            "run.json": json_text(study.run),
            **{f"figures/{name}.csv": csv_text(frame) for name, frame in drawn.items()},
        },
        "labels": list(labels(pd.DataFrame(study.table).reset_index(drop=True))),
        "runtime": runtime_names(pd.DataFrame(study.table)),
        "cells": _cells(study),
        "full_precision": FULL_PRECISION,
        "runs": _runs(study),
        "toggles": _toggles(study),
        "columns": {f"{label} {bits} bits": [label, bits] for label in study.labels for bits in study.bits(label)},
        "axes": _axes(drawn),
        "style": _style(study, drawn),
    }


def nothing() -> dict[str, Any]:
    """What a page carries that has nothing to show yet."""
    return {"files": {}, "runs": [], "toggles": {}, "columns": {}}


def _cells(study: Study) -> list[str]:
    """δ of every row of degradation.csv, as in the degradation tables."""
    frame: Frame = pd.DataFrame(study.table).reset_index(drop=True)
    frame[NUMBERS] = frame[NUMBERS].apply(pd.to_numeric, errors="coerce").astype(float)
    return tables.delta_cells(frame)


def _bands_rounded(frame: Frame) -> Frame:
    """The table with its bands rounded."""
    numbers = [name for name in frame.select_dtypes("number").columns if name not in ("bits", "params")]
    rows = frame["kind"].isin(["band", "ahead"])
    rounded = frame.copy()
    rounded.loc[rows, numbers] = frame.loc[rows, numbers].map(lambda value: float(f"{value:.{_DIGITS}g}"))
    return rounded


def _asked(study: Study) -> Frame:
    """The forecasts that an earlier checkpoint of each run would have given, for every configuration with a panel."""
    rows = (study.fit.get("hindsight") or {}).get("statements") or ()
    series, parts = curves.all_series(study), []
    for run in dict.fromkeys(str(row["run"]) for row in rows):
        if own := long_enough(series.get(run, [])):
            parts.append(fan_figure.data(own, study.panels))
    parts = [part for part in parts if len(part)]
    return _bands_rounded(pd.concat(parts, ignore_index=True)) if parts else pd.DataFrame()


_MAKERS: Mapping[str, Callable[[Study], Frame]] = {
    "loss_vs_tokens": loss_figure.data,
    "delta_vs_ratio": delta_figure.data,
    "delta_vs_bits": formats_figure.data,
    ASKED: _asked,
}


def _of_studies(
    theory: Mapping[str, Any] | None = None, _found: Any = None, _tested: Any = None, planned: Any = None
) -> dict[str, Frame]:
    """The data of the figures of layers and of mixed models, by name."""
    frames = {name: figure.data(theory) for name, figure in sensitivity.figures_of(theory).items()} if theory else {}
    return frames | ({"mixed": mixed_figure.data(planned)} if planned else {})


def _runs(study: Study) -> list[dict[str, Any]]:
    """Trajectories, smallest N first as in the figures, with their titles and the runs that belong to them."""
    first = study.rows.drop_duplicates("trajectory").sort_values("params", kind="stable")
    members = study.every.groupby("trajectory")["run"].unique()
    return [
        {"name": row["trajectory"], "title": study.title(row["trajectory"]),
         "params": row["params"], "members": list(members[row["trajectory"]])}
        for row in rows_of(first, ("trajectory", "params"))
    ]  # fmt: skip


def _toggles(study: Study) -> dict[str, str]:
    """{configuration: the switch that shows it}: its own or, where there are many, its method's."""
    if len(study.labels) <= MOST_TOGGLES:
        return {label: label for label in study.labels}
    methods = dict(zip(study.rows["label"], study.rows["method"]))
    return {label: methods[label] for label in study.labels}


def _axes(drawn: Mapping[str, Frame]) -> dict[str, Any]:
    """Where the axes of δ turn linear, and how the axes of the loss are cut (see the modules of the figures)."""
    linear = {
        name: delta_figure.linear_below(drawn[name]) for name in ("delta_vs_ratio", "delta_vs_bits") if name in drawn
    }
    return {
        "linear": linear,
        "visible": loss_figure.VISIBLE,
        "far": loss_figure.FAR,
        "least_fall": loss_figure.MIN_FALL,
        "not_drawn": list(loss_figure.NOT_DRAWN),
        "x_titles": formats_figure.AXES,
    }


def _style(study: Study, drawn: Mapping[str, Frame]) -> dict[str, Any]:
    """The colours and marks of the other figures."""
    return {
        "bits": {str(bits): figures.colour(bits) for bits in study.bits()},
        "other_bits": {f"{bits:g}": figures.colour(bits) for bits in _widths(drawn) - set(study.bits())},
        "marks": figures.MARKS,
        "lines": figures.LINES,
        "methods": formats_figure.styles_of(drawn["delta_vs_bits"]) if "delta_vs_bits" in drawn else {},
        "beside": delta_figure.BESIDE,
    }


def _widths(drawn: Mapping[str, Frame]) -> set[float]:
    """The bit-widths of all figures."""
    return {float(bits) for frame in drawn.values() if "bits" in frame for bits in frame["bits"].dropna().unique()}
