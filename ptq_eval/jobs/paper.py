"""A paper from a finished output folder: `paper("out", "paper")` writes a LaTeX project and compiles it.

It starts from what the folder's report says, `degradation.csv`, `fit.json` and `run.json`, so that both have the same
numbers, and refuses a report that is older than the measurements.  Needs no torch.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ptq_eval.config.paper import PaperConfig
from ptq_eval.errors import (
    EmptyFolderError,
    LatexError,
    NothingToFitError,
    OptionError,
    OutputMismatchError,
    did_you_mean,
)
from ptq_eval.report import studies, with_texts
from ptq_eval.report.common.data import COLUMNS, Study
from ptq_eval.report.common.files import read_json
from ptq_eval.report.paper import page, project
from ptq_eval.report.paper.names import drawable, renamed
from ptq_eval.results.load import load
from ptq_eval.results.points import BitsAxis, digest, read, rows_of

PACKAGES = "latexmk texlive-latex-recommended lmodern"
"""Debian's packages that compile the project as it is written."""
PROGRAMS = ("latexmk", "pdflatex")
_AGAIN = "ptq-eval report OUT"
_SECONDS = 300


@dataclass(frozen=True)
class Paper:
    """What was written, and the compiled file if there is one."""

    written: project.Written
    pdf: Path | None


def paper(out: str | Path, folder: str | Path, **options: Any) -> Paper:
    """Write the results in `out` as a LaTeX project below `folder`, and compile it unless `compile` is false.

    options: those of `ptq_eval.config.paper.PaperConfig`.  Raises EmptyFolderError if there is no `out`,
    NothingToFitError if it holds no report, OutputMismatchError if that is damaged or older than the measurements,
    OutputFolderError if `folder` holds something else, OutputFullError, OptionError, and LatexError where LaTeX is
    missing or fails; the sources are complete then.
    """
    config, out, folder = PaperConfig.of(options), Path(out), Path(folder)
    project.require_own(folder)
    table, fit, run = _finished(out)
    called = _called(config.rename, [str(name) for name in dict.fromkeys(table["run"].dropna())])
    found = drawable(called.values())
    names = {old: found.get(new, new) for old, new in called.items() if found.get(new, new) != old}
    table = table.assign(run=table["run"].replace(names))
    study = Study(table, with_texts(renamed(fit, names)), renamed(run, names))
    theory = renamed(studies(out)[0], names)
    written = page.write(folder, study, theory, config.latex_class, found)
    return Paper(written, compiled(folder) if config.compile else None)


def _called(names: Mapping[str, str], runs: Sequence[str]) -> dict[str, str]:
    """The name of every run.  Raises OptionError for another name of no run, and for one of two runs."""
    for old in names:
        if old not in runs:
            remedy = did_you_mean(old, runs)
            raise OptionError("--rename names no run", got=old, allowed=", ".join(runs), remedy=remedy)
    called = {run: names.get(run, run) for run in runs}
    new = list(called.values())
    if twice := [name for name in new if new.count(name) > 1]:
        raise OptionError("--rename gives two runs one name", got=twice[0], remedy="choose different names")
    return called


def _finished(out: Path) -> tuple[pd.DataFrame, dict[str, Any], dict[str, Any]]:
    """The degradation table, the fit and the description of a run, all of the same measurements."""
    if not out.is_dir():
        raise EmptyFolderError("there is no such folder", got=out, remedy="an output folder of `ptq-eval run`")
    fit = read_json(out / "fit.json", ("fits", "critical_tokens"), _AGAIN)
    run = read_json(out / "run.json", ("options",), "ptq-eval run FOLDER -o OUT")
    if fit is None or run is None or not (out / "degradation.csv").exists():
        raise NothingToFitError(
            "the folder has no report to make a paper of",
            got=out,
            remedy=f"finish `ptq-eval run`, or write the report again: {_AGAIN}",
        )
    try:
        table = pd.read_csv(out / "degradation.csv", dtype={"run": str, "weights_sha": str, "message": str})
        if missing := set(COLUMNS) - set(table):
            raise KeyError(f"no column {', '.join(sorted(missing))}")
        points = read(rows_of(table), fit.get("bits_axis") or "bits")[0]
    except (ValueError, KeyError, OSError) as error:
        remedy = f"delete that file and repeat `{_AGAIN}`"
        raise OutputMismatchError("degradation.csv is damaged", got=error, remedy=remedy) from error
    _require_same(out, fit, digest(points))
    return table, fit, run


def _require_same(out: Path, fit: dict[str, Any], of_table: str) -> None:
    """Raises OutputMismatchError where table, fit and records are not of the same measurements."""
    axis: BitsAxis | None = fit.get("bits_axis")
    measured = load(out, axis).digest if (out / "records").is_dir() else of_table
    if not fit.get("records") == of_table == measured:
        raise OutputMismatchError(
            "the report is not of the measurements in this folder", got=out, remedy=f"write it again: {_AGAIN}"
        )


def compiled(folder: Path) -> Path:
    """Compile main.tex with latexmk; the PDF.  Raises LatexError."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        names = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'}"
        raise LatexError(
            f"the sources are written, but {names} not installed",
            got=folder,
            remedy=f"apt-get install {PACKAGES}, or another TeX Live with latexmk, then repeat; or upload the folder",
        )
    command = ["latexmk", "-pdf", "-interaction=nonstopmode", "-halt-on-error", "-file-line-error", project.MAIN]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise LatexError("LaTeX does not end", got=f"{_SECONDS} s in {folder}", remedy="see main.log there") from error
    if done.returncode:
        raise LatexError("LaTeX fails", got=_fault(done.stdout.decode(errors="replace")), remedy=_remedy(folder))
    return folder / "main.pdf"


def _fault(log: str) -> str:
    """The first error in the output of LaTeX."""
    found = re.search(r"^(?:\S+:\d+: .*|! .*)", log, re.MULTILINE)
    return found[0] if found else log.strip().splitlines()[-1] if log.strip() else "nothing"


def _remedy(folder: Path) -> str:
    return (
        f"main.tex is yours to correct (see {folder / 'main.log'}); {project.GENERATED}/main.tex is as it was written; "
        f"for a missing .sty: apt-get install {PACKAGES}; for a publisher's class: texlive-publishers"
    )
