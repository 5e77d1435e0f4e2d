"""Several draws of the calibration windows, one row: means over the draws, and what the draw does to delta.

Measurements that differ in nothing but the calibration windows are draws of one cell of the table.  Their delta is the
mean over draws, whose squared error is the sampling variance of that mean over evaluation windows, which the draws
share, plus the variance of delta between draws divided by their number.  Degrees of freedom are those of Welch and
Satterthwaite.  A single draw says nothing about others: its error does not cover the draw.

Few draws determine a variance poorly, but a run has many cells, and another draw of the calibration windows acts like
another rounding: independently in each cell (measured by `benchmarks.calibration_draws`), it changes the error of the
weights, to which delta is linear and the KL divergence quadratic.  So the variances of the cells of one configuration,
divided by their KL divergence, are shrunk towards their common size, as far as they resemble each other (Smyth 2004,
the moderated variance of limma): the prior is a scaled inverse χ², fitted to the moments of the logarithms.
`rounding_sd` in place of the root of the divergence does no better, and is not always known.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize, special

from ptq_eval.records import Measurement
from ptq_eval.results.selection import cell_of
from ptq_eval.results.tokens import COLUMNS as TOKENS
from ptq_eval.runtime import COLUMNS as RUNTIME
from ptq_eval.sampling import SIGNIFICANT, Design, freedom, standard_error

_MEANS = (
    *("delta", "loss_q", "bpb_q", "kl", "kl_se", "top1_agreement", "top1_se", "bits_per_weight"),
    *("rounding_sd", "numerics_sd", "noise_floor", "effective_windows", *TOKENS),
)

CONFIGURATION = (
    *("quantizer", "quantizer_version", "options", "group_size", "symmetric", "format", "calibration", "protocol"),
    *("calibration_draws", "calib_text", "calib_windows", "calib_length", *RUNTIME),
)
"""Columns whose rows are of one configuration, whatever the checkpoint and the bits."""

MIN_CELLS = 4
"""Fewer variances than this do not show how much they resemble each other."""


def cells(measurements: Iterable[Measurement]) -> list[list[Measurement]]:
    """Measurements by cell of the table, draws in the order of their keys; draws that failed are excluded where others
    did not."""
    found: dict[Any, list[Measurement]] = {}
    for m in measurements:
        found.setdefault(cell_of(m.trial), []).append(m)
    ordered = [sorted(cell, key=lambda m: m.trial.key()) for cell in found.values()]
    return [[m for m in cell if m.nll and m.status != "failed"] or cell[:1] for cell in ordered]


def combined(rows: Sequence[dict[str, Any]], after: np.ndarray, before: np.ndarray, design: Design) -> dict[str, Any]:
    """The row of several draws, made of one row per draw, with the errors that evaluation windows explain.

    `add_calibration` adds what the draw does.  `after` [draws, windows] and `before` [windows] in nats per token.
    """
    row = dict(rows[0])
    row |= {name: float(np.mean([r[name] for r in rows])) for name in _MEANS if all(name in r for r in rows)}
    row["ppl_q"] = math.exp(row["loss_q"]) if row["loss_q"] < 700 else math.inf
    row |= {
        "delta_se": standard_error(after.mean(axis=0) - before, design),
        "loss_q_se": standard_error(after.mean(axis=0), design),
        "delta_df": design.freedom,
        "calibration_draws": len(rows),
        "calibration_sd": float(np.std([r["delta"] for r in rows], ddof=1)),
    }
    doubts = {doubt["kind"]: doubt for r in rows for doubt in json.loads(r.get("doubts") or "[]")}
    row["doubts"] = json.dumps(list(doubts.values())) if doubts else None
    partial = [r for r in rows if r["status"] == "partial"]
    return row | ({"status": "partial", "message": partial[0]["message"]} if partial else {})


def add_calibration(rows: Iterable[dict[str, Any]]) -> None:
    """Add what the draw of calibration windows does to the errors of all rows of several draws of a table."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if (row.get("calibration_draws") or 0) > 1:
            groups.setdefault(tuple(row.get(name) for name in CONFIGURATION), []).append(row)
    for group in groups.values():
        own = np.square([row["calibration_sd"] for row in group])
        scales = np.array([row.get("kl", math.nan) for row in group], float)
        draws = group[0]["calibration_draws"]
        variances, df = shrunk(own, draws - 1, scales)
        for row, variance, own_df in zip(group, variances / draws, df):
            sampling = row["delta_se"] ** 2
            row |= {
                "delta_se": math.sqrt(sampling + variance),
                "loss_q_se": math.sqrt(row["loss_q_se"] ** 2 + variance),
                "delta_df": freedom((sampling, variance), (row["delta_df"], own_df)),
                "calibration_se": math.sqrt(variance),
                "calibration_df": float(own_df),
                "covers_calibration": True,
            }
            widen_floor(row, row["calibration_se"])  # another draw is as little a reason as another rounding


def widen_floor(row: dict[str, Any], sd: float) -> None:
    """Add a standard deviation of delta, nats per token, to the noise floor of a row, where that is known."""
    if "noise_floor" in row:
        row["noise_floor"] = math.hypot(row["noise_floor"], SIGNIFICANT * sd)


def shrunk(variances: np.ndarray, df: float, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances [n] of `df` degrees of freedom, shrunk towards a common multiple of `scales` [n], and the degrees of
    freedom of each (Smyth 2004, section 6.2).

    Those that are zero or have no scale stay as they are, as do all where fewer than `MIN_CELLS` remain.  The prior
    never counts for more than the variances that it is made of.
    """
    known = np.isfinite(scales) & (scales > 0) & (variances > 0)
    if known.sum() < MIN_CELLS:
        return variances, np.full(len(variances), float(df))
    logs = np.log(variances[known] / scales[known]) - special.digamma(df / 2) + math.log(df / 2)
    excess = float(np.var(logs, ddof=1) - special.polygamma(1, df / 2))
    most = float(df * known.sum())
    prior = min(2 * _inverse_trigamma(excess), most) if excess > 0 else most
    common = math.exp(float(np.mean(logs)) + special.digamma(prior / 2) - math.log(prior / 2))
    moderated = (prior * common * scales + df * variances) / (prior + df)
    return np.where(known, moderated, variances), np.where(known, prior + df, df)


def _inverse_trigamma(value: float) -> float:
    """x with ψ'(x) = value > 0."""
    found: Any = optimize.brentq(lambda log: special.polygamma(1, math.exp(log)) - value, -20, 20)
    return math.exp(found)


def calibration_se(row: Mapping[str, Any]) -> float:
    """The part of the error of delta that is due to the draw of calibration windows; 0 for a single draw."""
    return row.get("calibration_se") or 0.0
