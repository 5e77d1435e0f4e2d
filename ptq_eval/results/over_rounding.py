"""Which methods did worse than rounding: every pair on one grid, tested with all of its errors and with control.

The difference of two deltas has the error over the same windows and over draws of the calibration windows
(`over_rounding_se`), and two deltas of equal methods also differ because each was rounded in one way of many: the
variances of both roundings (`rounding_sd`) and of the arithmetic (`numerics_sd`) are added.  Degrees of freedom are
those of the first part, by Satterthwaite's formula; that of the others is taken as known.

One report compares many pairs.  p-values are one-sided, and adjusted by Holm's procedure (1979) over all pairs of the
table, which holds whatever their dependence: the chance that any pair of equal methods is called worse is at most the
level.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

SUFFIX = "_rtn"
"""Marks the columns of rounding in a pair."""


def compared(both: pd.DataFrame) -> pd.DataFrame:
    """Pairs of rows, rounding's columns marked by `SUFFIX`, with the result of their comparison.

    New columns: `difference` and `error`, nats per token; `floor_known`, whether the chance of both roundings is in
    the error; `p` and `adjusted_p` of "no worse than rounding", NaN where the error is not known.
    """
    pairs = both.copy()
    apart = (_numbers(both, "delta_se") ** 2 + _numbers(both, f"delta_se{SUFFIX}") ** 2) ** 0.5
    difference = _numbers(both, "over_rounding").fillna(both["delta"] - both[f"delta{SUFFIX}"])
    windows = _numbers(both, "over_rounding_se").fillna(apart)
    roundings = _numbers(both, "rounding_sd") ** 2 + _numbers(both, f"rounding_sd{SUFFIX}") ** 2
    chance = roundings.fillna(0) + _numbers(both, "numerics_sd").fillna(0) ** 2
    variance = windows**2 + chance
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = _numbers(both, "delta_df").fillna(np.inf) * (variance / windows**2) ** 2
        z = difference / np.sqrt(variance)
    pairs["difference"], pairs["error"], pairs["floor_known"] = difference, np.sqrt(variance), roundings.notna()
    pairs["p"] = stats.t.sf(z, freedom.where(freedom >= 1, 1.0))
    pairs["adjusted_p"] = holm(pairs["p"].to_numpy())
    return pairs


def holm(p: np.ndarray) -> np.ndarray:
    """p-values [n] adjusted by Holm's step-down procedure; NaN stays NaN and does not count."""
    found = np.full(len(p), np.nan)
    order = [i for i in np.argsort(p) if not np.isnan(p[i])]
    factors = np.arange(len(order), 0, -1)
    found[order] = np.minimum(np.maximum.accumulate(factors * p[order]), 1.0)
    return found


def _numbers(rows: pd.DataFrame, name: str) -> pd.Series:
    """A column as numbers, NaN where a table of an earlier version lacks it."""
    if name not in rows:
        return pd.Series(np.nan, index=rows.index)
    return pd.Series(pd.to_numeric(rows[name], errors="coerce"), index=rows.index)
