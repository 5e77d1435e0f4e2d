"""Tasks: what quantization does to answers, beside what it does to the loss; the comparison is in `results.tasks`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ptq_eval.records import WEIGHTS_KEPT
from ptq_eval.report.common import tables
from ptq_eval.report.common.data import Study, runtime_name
from ptq_eval.report.common.numbers import MISSING, count, number, rough, with_error
from ptq_eval.report.common.words import plural
from ptq_eval.results.tasks import COLUMNS

TITLE = "Tasks"
NAME = "tasks.csv"
LEVEL = 0.05
MIN_VARIANTS = 8
"""Variants from which on a rank correlation with δ is given."""
_NO_METRIC = "no metric of this task is a number for each document, so nothing is compared"
_HEADER = (
    *("task", "metric", "weights", "bits", "activations and cache", "documents", "full precision", "quantized"),
    *("change", "worse", "better", "p", "δ"),
)
_LEAD = (
    "The same questions are answered before and after quantization, and compared document by document. Errors are "
    "standard errors over documents; worse and better count documents whose mark changed; p tests for no change "
    "(McNemar's exact test where marks are 0 or 1, else a paired t-test), adjusted for all rows of `tasks.csv` (Holm). "
    "Other roundings and other draws of calibration windows are not in these errors."
)


def frame(fit: Mapping[str, Any]) -> pd.DataFrame:
    """The table of `tasks.csv`."""
    return pd.DataFrame([{name: entry.get(name) for name in COLUMNS} for entry in fit["tasks"]], columns=list(COLUMNS))


def section(study: Study) -> str:
    """The answer in words and the table of every run's last checkpoint, in Markdown."""
    delta = {row["key"]: row for row in study.every.to_dict("records")}
    found = [{**entry, "delta": delta.get(entry["loss_key"], {})} for entry in study.fit["tasks"]]
    compared = [entry for entry in found if entry.get("change") is not None]
    text = f"{_LEAD}\n\n"
    text += "".join(f"- {line}\n" for line in _answers(compared)) + "\n"
    for run in dict.fromkeys(entry["run"] for entry in compared):
        own = [entry for entry in compared if entry["run"] == run]
        last = max(own, key=lambda entry: (number(entry["tokens"]), number(entry["step"])))
        rows = [e for e in own if (e["tokens"], e["step"]) == (last["tokens"], last["step"])]
        rows.sort(key=lambda e: (e["task"], e["metric"], study.label_of(e), number(e["bits"]), runtime_name(e)))
        text += f"{tables.cell(str(run))} at D = {count(last['tokens'])} (all checkpoints are in `{NAME}`):\n\n"
        text += tables.markdown(_HEADER, [_row(study, entry) for entry in rows], left=5) + "\n"
    unmarked = [entry for entry in found if entry["status"] == "ok" and entry["metric"] is None]
    for task in dict.fromkeys(entry["task"] for entry in unmarked):
        text += f"**{tables.cell(task)}**: {_NO_METRIC}.\n\n"
    failed = [entry for entry in found if entry["status"] == "failed"]
    for message in dict.fromkeys(str(entry["message"]) for entry in failed):
        text += f"{plural(sum(e['message'] == message for e in failed), 'answer')} failed: {tables.cell(message)}\n\n"
    return text


def _answers(compared: Sequence[Mapping[str, Any]]) -> list[str]:
    """By task and metric: how many variants are significantly worse, and how the change goes with δ."""
    lines = []
    for task, metric in dict.fromkeys((entry["task"], entry["metric"]) for entry in compared):
        own = [entry for entry in compared if (entry["task"], entry["metric"]) == (task, metric)]
        sign = 1 if own[0]["higher_is_better"] else -1
        clear = [entry for entry in own if number(entry["p_adjusted"]) < LEVEL]
        worse = sum(sign * entry["change"] < 0 for entry in clear)
        line = (
            f"**{tables.cell(task)}, {tables.cell(metric)}**: of {plural(len(own), 'variant')}, {worse} significantly "
        )
        line += f"worse, {len(clear) - worse} significantly better than full precision."
        pairs = [(sign * e["change"], number(e["delta"].get("delta"))) for e in own]
        pairs = [(change, delta) for change, delta in pairs if math.isfinite(delta)]
        if len(pairs) >= MIN_VARIANTS:
            correlation = float(stats.spearmanr(np.array(pairs))[0])
            if math.isfinite(correlation):
                line += f" Rank correlation of the change with δ: {correlation:.2f}.".replace("-", "−")
        lines.append(line)
    return lines


def _row(study: Study, entry: Mapping[str, Any]) -> list[str]:
    bits, delta, p = number(entry["bits"]), entry["delta"], number(entry["p_adjusted"])
    return [
        tables.cell(entry["task"]),
        tables.cell(entry["metric"]),
        study.label_of(entry).replace(WEIGHTS_KEPT, "full precision"),
        f"{bits:.0f}" if bits == bits else MISSING,
        runtime_name(entry) or MISSING,
        str(entry["documents"]),
        with_error(entry["score_fp"], entry["score_fp_se"]),
        with_error(entry["score_q"], entry["score_q_se"]),
        with_error(entry["change"], entry["change_se"]),
        str(entry["worse"]),
        str(entry["better"]),
        "< 0.001" if p < 0.001 else rough(p),
        with_error(delta.get("delta"), delta.get("delta_se")),
    ]
