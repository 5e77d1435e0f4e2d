"""From measurements to something to read: tables, LaTeX, figures, a page, and the same in a terminal.

`write` makes files, `render` makes what the command line prints; both take the table of measurements, the fit
and the description of the run, and compute nothing that is not in them.  No torch and no transformers here: a
report can be written anew on a laptop from an output folder alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptq_eval.report.common.data import labels
from ptq_eval.report.common.files import write_fit
from ptq_eval.report.run.inspection import inspection_table

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from rich.console import RenderableType

    from ptq_eval.report.common.data import Study
    from ptq_eval.results.load import Results
    from ptq_eval.results.points import Point

__all__ = ["inspection_table", "labels", "render", "render_fit", "renew_page", "with_texts", "write", "write_fit"]


def with_texts(fit: Mapping[str, Any]) -> dict[str, Any]:
    """The fit of an output folder (`ptq_eval.laws.analyse`) with its sentences.

    Each entry of "fits" gets "status", "message" and "interval", each entry of "critical_tokens" its "verdict", and the
    "cautions" become "warnings", before any warnings that are there already.  Texts that are there are made anew.
    """
    from ptq_eval.report.common.words import with_fit_texts
    from ptq_eval.report.run.warnings import warning_texts
    from ptq_eval.report.run.words import verdict_text

    texts = warning_texts(fit.get("cautions") or ())
    return {
        **fit,
        "fits": [with_fit_texts(entry) for entry in fit.get("fits") or ()],
        "critical_tokens": [{**entry, "verdict": verdict_text(entry)} for entry in fit.get("critical_tokens") or ()],
        "warnings": [*texts, *(other for other in fit.get("warnings") or () if other not in texts)],
    }


def write(
    out: Path,
    table: pd.DataFrame,
    fit: Mapping[str, Any],
    run: Mapping[str, Any],
    replicates: Sequence[np.ndarray] | None = None,
    points: Sequence[Point] | None = None,
) -> list[Path]:
    """Write the whole report below `out` and return the paths of its files.  points: the table's, if known.

    `degradation.csv`, `fit.json`, `replicates.npz` if replicates are passed, `report.md` and the same for a browser,
    `report.html`, `tables/degradation.tex` and two figures, one more for named number formats, several calibrations and
    a run of eight checkpoints each, as PNG, PDF and CSV.  Both pages include a comparison of laws, a backtest, a
    study of sensitivity and mixed models if the folder has them.
    Each file is replaced atomically.

    Raises OutputFullError where the folder cannot be written, NothingToFitError for a table without rows, and
    OutputMismatchError where one of these is damaged.
    """
    from ptq_eval.report.backtest import hindsight
    from ptq_eval.report.common import figures, files
    from ptq_eval.report.common.data import Study
    from ptq_eval.report.run import (
        calibrations_figure,
        delta_figure,
        formats_figure,
        latex,
        loss_figure,
        precisions_figure,
        tasks,
    )

    fit, out = with_texts(fit), Path(out)
    study = Study(table, fit, run, points)
    drawn: dict[str, Any] = {"delta_vs_ratio": delta_figure, "loss_vs_tokens": loss_figure}
    if study.has_formats:
        drawn["delta_vs_bits"] = formats_figure
    if len(study.runtime) and study.runtime["bits"].notna().any():
        drawn[precisions_figure.NAME] = precisions_figure
    if len(study.calibrations):
        drawn["delta_vs_calibration"] = calibrations_figure
    if hindsight.shown(study):
        drawn[hindsight.name(study)] = hindsight
    data = {name: figure.data(study) for name, figure in drawn.items()}
    return [
        files.write_csv(out / "degradation.csv", table),
        *([files.write_csv(out / tasks.NAME, tasks.frame(fit))] if fit.get("tasks") else []),
        files.write_text(out / "tables" / "degradation.tex", latex.document(study)),
        *figures.write(out / "figures", study, drawn, data),
        *write_pages(out, study, data),
        *files.write_fit(out, fit, replicates),  # last: a fit of these measurements says that their report is whole
    ]


def write_pages(out: Path, study: Study, data: Mapping[str, pd.DataFrame] | None = None) -> list[Path]:
    """Write `report.md` and `report.html`, with a comparison of laws, a backtest, a study of sensitivity and mixed
    models if the folder has them.  data: the figures' data by name, if known."""
    from ptq_eval.report.common import files
    from ptq_eval.report.run import page
    from ptq_eval.report.web import page as web

    records = studies(out)
    parts = page.sections(study, *records)
    return [
        files.write_text(out / "report.md", page.markdown(parts)),
        files.write_text(out / web.NAME, web.document(study, records, data, out / "figures", parts=parts)),
    ]


def studies(out: Path) -> tuple[Mapping[str, Any] | None, ...]:
    """The records of sensitivity, comparison, backtest and mixed models below `out`; None for each that is missing."""
    from ptq_eval.report.backtest import page as backtest
    from ptq_eval.report.comparison import page as comparison
    from ptq_eval.report.mixed import page as mixed
    from ptq_eval.report.sensitivity import page as sensitivity

    return sensitivity.read(out), comparison.read(out), backtest.read(out), mixed.read(out)


def renew_page(results: Results) -> list[Path]:
    """Write the pages of an output folder again, after a study was added, with the fit that is stored there.

    Returns the paths written; none where `fit_of` finds no fit: `ptq-eval report` then makes both again.
    """
    from ptq_eval.report.common.data import Study

    fit = fit_of(results)
    if fit is None or not (results.folder / "report.md").exists():
        return []
    return write_pages(results.folder, Study(results.frame, with_texts(fit), results.run, results.points))


def fit_of(results: Results) -> dict[str, Any] | None:
    """The content of `fit.json` beside these results; None where there is none, or it is of other measurements.

    Raises OutputMismatchError if the file is damaged.
    """
    from ptq_eval.report.common import files

    fit = files.read_json(results.folder / "fit.json", ("fits", "critical_tokens"), "ptq-eval report OUT")
    return fit if fit is not None and fit.get("records") == results.digest else None


def render(
    table: pd.DataFrame, fit: Mapping[str, Any], run: Mapping[str, Any], points: Sequence[Point] | None = None
) -> RenderableType:
    """The degradation tables, the fits, the critical tokens and the warnings, for a rich console."""
    from ptq_eval.report.common.data import Study
    from ptq_eval.report.run import terminal

    return terminal.Report(Study(table, with_texts(fit), run, points))


def render_estimates(estimates: Sequence[Any]) -> RenderableType:
    """What a run will take, as `ptq_eval.estimate` gives it, for a rich console."""
    from ptq_eval.report.run.estimates import estimate_table

    return estimate_table(estimates)


def render_fit(
    table: pd.DataFrame, fit: Mapping[str, Any], run: Mapping[str, Any], points: Sequence[Point] | None = None
) -> RenderableType:
    """The part of `render` that the fit says: fits, critical tokens and warnings."""
    from ptq_eval.report.common.data import Study
    from ptq_eval.report.run import terminal

    return terminal.Report(Study(table, with_texts(fit), run, points), measurements=False)
