"""Data as users have them, made into the columns that a fit can use: checked, cleaned and counted."""

from __future__ import annotations

from typing import Any

import numpy as np

from ptq_eval.errors import OptionError
from ptq_eval.laws.base import Data, Law
from ptq_eval.laws.fit.losses import Loss


def clean(law: Law, data: Data, sigma: Any, loss: Loss) -> tuple[dict[str, np.ndarray], np.ndarray, int]:
    """The usable points with every optional column filled in, which rows they are [n], and how many rows were dropped
    only because their response has no logarithm.

    OptionError names a column that is missing, of another length, or not made of numbers.
    """
    y = _numbers(data, law.response, law)
    n = len(y)
    keep = np.isfinite(y)
    columns: dict[str, Any] = {**_optional(n), **data, law.response: y}
    if sigma is not None:
        given = _numbers({"sigma": np.atleast_1d(sigma)}, "sigma", law)
        columns["sigma"] = np.full(n, given[0]) if len(given) == 1 else given
    for name in law.columns:
        columns[name] = _numbers(data, name, law)
    columns["se"] = _numbers(columns, "se", law)
    for name, values in columns.items():
        if len(values) != n:
            raise OptionError(f"column {name!r} has another length than {law.response!r}", got=f"{len(values)} and {n}")
    for name in (*law.columns, *(["sigma"] if sigma is not None else [])):
        allowed = columns[name] >= 0 if name in law.from_zero else columns[name] > 0
        keep &= np.isfinite(columns[name]) & allowed
    undefined = keep & ~(y > 0) if loss.log else np.zeros(n, bool)
    keep &= ~undefined
    kept = {name: np.asarray(values)[keep] for name, values in columns.items()}
    kept["se"] = standard_errors(kept["se"])
    return kept, keep, int(np.sum(undefined))


def standard_errors(values: Any) -> np.ndarray:
    """Standard errors [n] as weights may use them: those that are not known, or no errors at all, are as large as the
    largest known one, so that no point is trusted for its missing error; all zero where none is known."""
    se = np.asarray(values, float)
    known = np.isfinite(se) & (se > 0)
    return np.where(known, se, se[known].max()) if known.any() else np.zeros(len(se))


def _optional(n: int) -> dict[str, np.ndarray]:
    return {"se": np.zeros(n), "run": np.zeros(n, int), "checkpoint": np.arange(n)}


def _numbers(data: Data, name: str, law: Law) -> np.ndarray:
    if name not in data:
        needed = ", ".join((*law.columns, law.response))
        raise OptionError(f"{law.name} needs a column that the data lack", got=", ".join(data), allowed=needed)
    try:
        values = np.asarray(data[name], float)
    except (TypeError, ValueError):
        raise OptionError(f"column {name!r} holds something that is not a number", got=list(data[name])[:3]) from None
    if values.ndim != 1:
        raise OptionError(f"column {name!r} has the wrong shape", got=values.shape, allowed="[n]")
    return values
