"""Checks on the results: methods that did worse than rounding, failed rows, and the damping that GPTQ needed.

Every method but rounding to nearest exists to lower the error that rounding leaves, so a larger δ than rounding's on
the same grid points to too little calibration data, to damping, or to a fault; every such pair is named.  The standard
error of a difference of two deltas is taken as if they were independent.  They share evaluation windows, so this is an
upper bound: a difference that is called significant here is significant.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from ptq_eval.laws.base import SIGNIFICANT
from ptq_eval.report.common.data import FULL_PRECISION, Frame, Study
from ptq_eval.report.common.numbers import MISSING, short, with_error
from ptq_eval.report.common.tables import cell, markdown

ROUNDING = "rtn"

_GRID = ["point", "bits", "group_size", "symmetric"]
_DELTAS = (("delta", "delta_se"), ("delta_rtn", "delta_se_rtn"), ("difference", "error"))
_HEADER = ("method", "checkpoint", "bits", "δ of the method", "δ of RTN", "difference")


def worse_than_rounding(study: Study) -> str:
    """The section on methods whose δ exceeds that of rounding on the same grid, in Markdown."""
    both = pairs(study)
    if both.empty:
        return "No measurement of another method has one of RTN on the same grid to be compared with.\n"
    count = f"{len(both)} pair{'s' * (len(both) != 1)} on the same grid compared. "
    text = f"{count}Where two methods are equal, chance puts one pair in forty beyond two standard errors.\n\n"
    worse = both[both["difference"] > 0]
    significant = worse["difference"] > SIGNIFICANT * worse["error"]
    if significant.any():
        rows = [_row(row) for _, row in worse[significant].iterrows()]
        text += "By more than two standard errors:\n\n" + markdown(_HEADER, rows, left=2)
    if not significant.all():
        groups = worse[~significant].groupby(["label", "bits"], sort=False)
        named = [f"{label} {bits:.0f} bits at {', '.join(rows['checkpoint'])}" for (label, bits), rows in groups]
        text += f"\nWorse, but within noise: {'; '.join(map(cell, named))}.\n"
    return text if len(worse) else text + f"None of {', '.join(dict.fromkeys(both['label']))} is worse anywhere.\n"


def pairs(study: Study) -> Frame:
    """Rows of every other method beside those of RTN for the same checkpoint, bits, group size and symmetry."""
    rows = study.measured.copy()
    for name in ("group_size", "symmetric"):
        rows[name] = rows[name].astype(object).fillna("").astype(str)
    rounding = rows["quantizer"] == ROUNDING
    others = rows[~rounding & (rows["quantizer"] != FULL_PRECISION)]
    both = others.merge(rows[rounding], on=_GRID, suffixes=("", "_rtn"), how="inner")
    both["difference"] = both["delta"] - both["delta_rtn"]
    both["error"] = np.hypot(both["delta_se"].fillna(0), both["delta_se_rtn"].fillna(0))
    return both.sort_values(["label", "bits", "place", "tokens"], kind="stable")


def _row(row: Any) -> list[str]:
    deltas = [with_error(row[value], row[error]) for value, error in _DELTAS]
    return [row["label"], row["checkpoint"], f"{row['bits']:.0f}", *deltas]


def incomplete(study: Study) -> list[list[str]]:
    """(checkpoint, what, status, reason) of every row that was not measured in full."""
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
    """Damping, retries, dead columns and layers left in full precision, per configuration and bits."""
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
