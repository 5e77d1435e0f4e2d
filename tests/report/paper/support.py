"""Finished output folders for papers: synthetic ones, and how LaTeX is read back."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from ptq_eval.report.common import files
from ptq_eval.results.points import digest, read
from tests.report.synthetic import make_fit, make_run, make_table

ROOT = Path(__file__).parents[3]
EMBEDDED = ROOT / "results" / "embedded"


def finished(out, table, fit, run):
    """An output folder with a report of these, without records."""
    files.write_csv(out / "degradation.csv", table)
    rows = pd.read_csv(out / "degradation.csv", dtype={"run": str}).to_dict("records")
    files.write_json(out / "fit.json", {**fit, "records": digest(read(rows)[0])})
    files.write_json(out / "run.json", run)
    return out


def synthetic(out, **options):
    """The synthetic study as an output folder."""
    table = make_table(**options)
    return finished(out, table, make_fit(table), make_run(table))


def ugly(out):
    """One checkpoint per run, names that LaTeX hates, failed and partial trials, mixed formats, nothing fitted."""
    names = {"small": "s&m_a%l{#}~^\\$ 训练", "large": "训练-二$x_1$"}
    table = make_table(ratios=(20,))
    run = make_run(table)
    run["models"] = {names[name]: model for name, model in run["models"].items()}
    table["run"] = table["run"].replace(names)
    table.loc[3:5, "status"] = "failed"
    table.loc[3:5, ["delta", "loss_q", "delta_se"]] = np.nan
    table.loc[3:5, "message"] = "out of memory_50% #1"
    table.loc[7, "status"] = "partial"
    table.loc[table["bits"] == 4, "format"] = "nvfp4"
    table.loc[table["bits"] == 8, "format"] = "q8_0"
    cautions = [{"kind": "few_runs", "runs": 2, "needed": 10}]
    return finished(out, table, {"fits": [], "critical_tokens": [], "cautions": cautions, "warnings": []}, run)


def macros(paper):
    """{name: LaTeX} of numbers.tex, read by counting braces."""
    text, found = (paper / "generated" / "numbers.tex").read_text(), {}
    for match in re.finditer(r"^\\(?:new|provide)command\{\\([A-Za-z]+)\}\{", text, re.MULTILINE):
        depth, at = 1, match.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(text[at], 0) if text[at - 1] != "\\" else 0
            at += 1
        found[match[1]] = text[match.end() : at - 1]
    return found
