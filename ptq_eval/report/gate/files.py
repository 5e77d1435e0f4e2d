"""The files of a comparison, each at the place that was asked for."""

from __future__ import annotations

import os
from pathlib import Path

from ptq_eval.config.gate import GateFiles
from ptq_eval.report.common.files import append_text, write_json, write_text
from ptq_eval.report.gate import junit, page, series
from ptq_eval.results.gate.verdict import Comparison

SUMMARY = "GITHUB_STEP_SUMMARY"
"""The variable that names the file of a job's summary."""


def write(found: Comparison, files: GateFiles) -> list[Path]:
    """Write what was asked for; the paths written.  Raises OutputFullError."""
    written = []
    if files.markdown:
        written.append(write_text(Path(files.markdown), page.markdown(found)))
    if files.junit:
        written.append(write_text(Path(files.junit), junit.junit(found)))
    if files.benchmark_json:
        written.append(write_json(Path(files.benchmark_json), series.entries(found)))
    if files.json:
        written.append(write_json(Path(files.json), page.to_dict(found)))
    if files.summary:
        written.append(append_text(Path(os.environ[SUMMARY]), page.markdown(found)))
    return written
