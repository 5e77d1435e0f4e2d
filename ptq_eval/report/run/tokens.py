"""Token by token: how the divergence and the probability of the true next token are spread over tokens.

The numbers are those that llama.cpp's perplexity tool prints for `--kl-divergence`, at the last checkpoint of each run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ptq_eval.records import WEIGHTS_KEPT
from ptq_eval.report.common import tables
from ptq_eval.report.common.data import Frame, Study
from ptq_eval.report.common.numbers import MISSING, count, number, percent, short, with_error

TITLE = "Token by token"
_HEADER = (
    *("weights", "bits", "KL, mean", "median", "99 %", "99.9 %", "largest", "Δp, mean", "RMS", "1 %", "99 %"),
    *("same top token", "correlation"),
)
_RUNTIME = "activations and cache"
_LEAD = (
    "KL is the divergence of a token's distribution from full precision, in nats; Δp is the probability of the true "
    "next token after quantization minus before, in percentage points; the other headings are percentiles over all "
    "tokens scored. Where the 1 % and the 99 % percentile of Δp are of one size, quantization acts like noise on "
    "probabilities; where the lower one is larger, the model has become worse. The correlation is that of the tokens' "
    "losses before and after. Errors, in brackets, are over evaluation windows. The definitions are llama.cpp's; its "
    "numbers are of the second half of each window alone."
)


def last(study: Study) -> Frame:
    """The rows of the last checkpoint of each trajectory that say what single tokens do, activations and cache
    included; empty where all records are of earlier versions."""
    rows: Frame = pd.concat([study.measured, study.runtime])
    if "delta_p_rms" not in rows or rows["delta_p_rms"].isna().all():
        return rows.iloc[:0]
    rows = rows[rows["tokens"] == rows.groupby("trajectory")["tokens"].transform("max")]
    return rows.sort_values(["place", "label", "bits", "runtime_name"], kind="stable")


def section(study: Study) -> str:
    """The table of each run in Markdown; nothing where there is none."""
    rows = last(study)
    runtime = bool((rows["runtime_name"] != "").any())
    header = (*_HEADER[:2], *([_RUNTIME] if runtime else []), *_HEADER[2:])
    text = ""
    for run, own in rows.groupby("trajectory", sort=False):
        text += f"{tables.cell(study.title(str(run)))}, D = {count(own.iloc[0]['tokens'])}:\n\n"
        cells = [_row(row, runtime) for row in own.to_dict("records")]
        text += tables.markdown(header, cells, left=3 if runtime else 2) + "\n"
    return f"{_LEAD}\n\n{text}" if text else ""


def _row(row: Mapping[str, Any], runtime: bool) -> list[str]:
    bits, correlation = number(row["bits"]), number(row["loss_correlation"])
    points = lambda name: short(100 * number(row[name]))
    with_points = lambda name: with_error(100 * number(row[name]), 100 * number(row[f"{name}_se"]))
    return [
        str(row["label"]).replace(WEIGHTS_KEPT, "full precision"),
        f"{bits:.0f}" if bits == bits else MISSING,
        *([row["runtime_name"] or MISSING] if runtime else []),
        with_error(row["kl"], row["kl_se"]),
        *(short(row[name]) for name in ("kl_median", "kl_p99", "kl_p999", "kl_max")),
        with_points("delta_p"),
        with_points("delta_p_rms"),
        points("delta_p_p1"),
        points("delta_p_p99"),
        percent(row["top1_agreement"]),
        f"{100 * correlation:.3f} %" if correlation == correlation else MISSING,
    ]
