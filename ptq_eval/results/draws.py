"""Several draws of the calibration windows, one row: means over the draws, and what the draw does to delta.

Measurements that differ in nothing but the calibration windows are draws of one cell of the table.  Their delta is the
mean over draws, whose squared error is the sampling variance of that mean over evaluation windows, which the draws
share, plus the variance of delta between draws divided by their number.  Degrees of freedom are those of Welch and
Satterthwaite.  A single draw says nothing about others: its error does not cover the draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ptq_eval.records import Measurement
from ptq_eval.sampling import SIGNIFICANT, Design, freedom, standard_error

_MEANS = (
    *("delta", "loss_q", "bpb_q", "kl", "kl_se", "top1_agreement", "top1_se", "bits_per_weight"),
    *("rounding_sd", "numerics_sd", "noise_floor", "effective_windows"),
)


def cells(measurements: Iterable[Measurement]) -> list[list[Measurement]]:
    """Measurements by cell of the table, draws in the order of their keys; draws that failed are excluded where others
    did not."""
    found: dict[str, list[Measurement]] = {}
    for m in measurements:
        found.setdefault(replace(m.trial, calibration_corpus="").key(), []).append(m)
    ordered = [sorted(cell, key=lambda m: m.trial.key()) for cell in found.values()]
    return [[m for m in cell if m.nll and m.status != "failed"] or cell[:1] for cell in ordered]


def combined(rows: Sequence[dict[str, Any]], after: np.ndarray, before: np.ndarray, design: Design) -> dict[str, Any]:
    """The row of several draws from those of each; `after` [draws, windows] and `before` [windows], nats per token."""
    k, first = len(rows), rows[0]
    row = dict(first)
    row |= {name: float(np.mean([r[name] for r in rows])) for name in _MEANS if all(name in r for r in rows)}
    row["ppl_q"] = math.exp(row["loss_q"]) if row["loss_q"] < 700 else math.inf
    sd = float(np.std([r["delta"] for r in rows], ddof=1))
    sampling, between = standard_error(after.mean(axis=0) - before, design) ** 2, sd**2 / k
    loss_error = standard_error(after.mean(axis=0), design)
    row |= {
        "delta_se": math.sqrt(sampling + between),
        "loss_q_se": math.sqrt(loss_error**2 + between),
        "delta_df": freedom((sampling, between), (design.freedom, k - 1)),
        "calibration_draws": k,
        "calibration_sd": sd,
        "covers_calibration": True,
    }
    if "noise_floor" in row:  # what another draw would give is as little a reason as another rounding
        row["noise_floor"] = math.hypot(row["noise_floor"], SIGNIFICANT * math.sqrt(between))
    partial = [r for r in rows if r["status"] == "partial"]
    return row | ({"status": "partial", "message": partial[0]["message"]} if partial else {})


def calibration_se(row: dict[str, Any]) -> float:
    """The part of the error of delta that is due to the draw of calibration windows; 0 for a single draw."""
    draws = row.get("calibration_draws") or 1
    return row["calibration_sd"] / math.sqrt(draws) if draws > 1 else 0.0
