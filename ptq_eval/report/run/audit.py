"""What a reader must be told besides the results: inversions, failures, and how hard GPTQ had to be pushed.

GPTQ minimises the layer error that rounding leaves, so a larger δ than rounding's on the same grid is a sign of
too little calibration data, of damping, or of a fault; every such pair is named.  The standard error of a
difference of two deltas is taken as if they were independent: they share evaluation windows, so this is an upper
bound, and what is called clear here is clear.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from ptq_eval.report.common.data import Frame, Study
from ptq_eval.report.common.numbers import MISSING, short, with_error

CLEAR = 2.0
"""A difference of more than this many standard errors is called clear."""

_GRID = ["point", "bits", "group_size", "symmetric"]


def _pairs(study: Study) -> Frame:
    """Rows of GPTQ beside those of RTN for the same checkpoint, bits, group size and symmetry."""
    rows = study.measured.copy()
    for name in ("group_size", "symmetric"):
        rows[name] = rows[name].astype(object).fillna("").astype(str)
    gptq, rtn = (rows[rows["quantizer"] == name] for name in ("gptq", "rtn"))
    both = gptq.merge(rtn, on=_GRID, suffixes=("", "_rtn"), how="inner")
    both["difference"] = both["delta"] - both["delta_rtn"]
    both["error"] = np.hypot(both["delta_se"].fillna(0), both["delta_se_rtn"].fillna(0))
    return both.sort_values(["bits", "place", "tokens"], kind="stable")


def compared(study: Study) -> int:
    """How many measurements of GPTQ have one of RTN to be compared with."""
    return len(_pairs(study))


def inversions(study: Study) -> list[list[str]]:
    """Pairs where δ of GPTQ exceeds that of RTN by more than two standard errors, as rows of text."""
    both = _pairs(study)
    return [
        [
            row["checkpoint"],
            row["label"],
            f"{row['bits']:.0f}",
            with_error(row["delta"], row["delta_se"]),
            with_error(row["delta_rtn"], row["delta_se_rtn"]),
            with_error(row["difference"], row["error"]),
        ]
        for _, row in both[(both["difference"] > 0) & (both["difference"] > CLEAR * both["error"])].iterrows()
    ]


def within_noise(study: Study) -> list[str]:
    """Names of the pairs where GPTQ is worse by no more than two standard errors, by configuration and bits."""
    both = _pairs(study)
    small = both[(both["difference"] > 0) & (both["difference"] <= CLEAR * both["error"])]
    return [
        f"{label} {bits:.0f} bits at {', '.join(rows['checkpoint'])}"
        for (label, bits), rows in small.groupby(["label", "bits"], sort=False)
    ]


def left_out(study: Study) -> list[list[str]]:
    """(checkpoint, what, status, reason) of every row that was not measured whole."""
    return [
        [
            row["checkpoint"],
            row["label"] + (f", {row['bits']:.0f} bits" if row["bits"] == row["bits"] else ""),
            str(row["status"]),
            row["message"] or MISSING,
        ]
        for _, row in study.troubled.iterrows()
    ]


def solver_summary(study: Study) -> list[list[Any]]:
    """Damping, retries, dead columns and layers left alone, over all checkpoints, per configuration and bits."""
    names = ("damping_max", "damping_retries", "dead_columns", "layers_skipped")
    if any(name not in study.rows for name in names):
        return []
    return list(_solver_rows(study.rows[study.rows["quantizer"] == "gptq"], names))


def _solver_rows(rows: Frame, names: tuple[str, ...]) -> Iterator[list[Any]]:
    for (label, bits), group in rows.groupby(["label", "bits"], sort=False):
        numbers = group[list(names)].apply(pd.to_numeric, errors="coerce")
        if numbers.isna().all(axis=None):
            continue
        sums = [f"{numbers[name].sum():.0f}" for name in names[1:]]
        yield [label, f"{bits:.0f}", short(numbers[names[0]].max()), *sums]
