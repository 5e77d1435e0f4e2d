"""How well a law predicts what it was not fitted to: the errors on points that were held out.

A law is used to extrapolate, so what is held out are not random points but an end of the range: the largest D, the
largest N, or one bit-width after another; "last" is the largest D of every run by itself, which a run with a single D
has not, and where no run has two, that of every N.  An end is made of whole values (those within 5 % count as one), as
many as are needed to hold a tenth of the points.  Errors are of the point prediction; held-out points do not affect the
weights.

`log_error` is the natural measure where responses span orders of magnitude, and is defined for positive ones only;
`error` and `absolute_error` keep all of them.  None of them is corrected for the noise of the held-out points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ptq_eval.errors import OptionError
from ptq_eval.laws.base import Data, FitKind, FitResult, FitStatus, Law
from ptq_eval.laws.findings import Finding, Why, why
from ptq_eval.laws.fit.fit import fit
from ptq_eval.laws.fit.losses import make_loss
from ptq_eval.laws.fit.requirements import clean
from ptq_eval.laws.quality import finite_or_none
from ptq_eval.results.points import SAME_SIZE

MIN_SHARE = 0.1
"""At least this share of the points is held out."""

BY = ("D", "N", "P", "last")


@dataclass(frozen=True)
class Fold:
    """One part held out: the `values` it has, which rows of the data they are, observed and predicted responses
    (NaN without a fit), and the fit to the rest."""

    values: tuple[float, ...]
    rows: np.ndarray
    observed: np.ndarray
    predicted: np.ndarray
    result: FitResult


@dataclass(frozen=True)
class HeldOut:
    """Errors on the points held out of all folds, in the response's unit (nats per token).

    `error` is the root mean square, `absolute_error` the median size and `bias` the mean of predicted − observed;
    `log_error` the root mean square of log predicted − log observed over the `n_log` points where both are positive.
    Everything is NaN unless `status` is ok: otherwise some fold could not be fitted, and it has the reason.
    """

    law: str
    by: str
    folds: tuple[Fold, ...]
    status: FitStatus
    n_held_out: int
    error: float
    absolute_error: float
    bias: float
    log_error: float
    n_log: int

    def to_dict(self) -> dict[str, Any]:
        """A JSON object, without the points."""
        plain = {name: getattr(self, name) for name in ("law", "by", "n_held_out", "n_log")} | self.status.to_dict()
        numbers = ("error", "absolute_error", "bias", "log_error")
        values = [list(fold.values) for fold in self.folds]
        return {**plain, **{name: finite_or_none(getattr(self, name)) for name in numbers}, "held_out": values}


def held_out(law: Law, data: Data, by: Literal["D", "N", "P", "last"] = "D", **fit_options: Any) -> HeldOut:
    """Fit `law` to `data` without its largest D, its largest N, one bit-width in turn, or the largest D of each run.

    `fit_options` as for `fit`; no intervals are computed unless `intervals` is given.  Where the data cannot
    be split or the rest cannot be fitted, the status says why; OptionError for another `by`.
    """
    if by not in BY:
        raise OptionError("unknown way to hold out", got=repr(by), allowed=", ".join(BY))
    options: dict[str, Any] = {"intervals": "none", **fit_options}
    cost = make_loss(options.get("loss", "huber"), options.get("huber_delta"))
    usable = clean(law, data, options.get("sigma"), cost)[1]
    parts = held_out_rows(data, by, usable)
    if isinstance(parts, Finding):
        return _summary(law, by, (), FitStatus.not_identified(parts))
    column = np.asarray(data[_variable(by)], float)
    folds = tuple(_fold(law, data, column, rows, usable, options) for rows in parts)
    failed = [fold.result.status for fold in folds if not fold.result.identified]
    return _summary(law, by, folds, failed[0] if failed else FitStatus())


def held_out_rows(data: Data, by: str, usable: np.ndarray) -> list[np.ndarray] | Finding:
    """The rows of each part that is held out in turn, of those `usable` [n]; why there is none.

    by: "D" or "N" for its end, "P" for each bit-width, "last" for the end of each run.
    """
    name = _variable(by)
    if name not in data:
        return why(Why.COLUMN_MISSING, variable=name)
    column = np.asarray(data[name], float)
    usable = usable & np.isfinite(column) & (column > 0)
    levels = _levels(column, usable)
    parts = levels if by == "P" else [_last(data, column, usable)] if by == "last" else [_end(levels)]
    held = sum(map(len, parts)) if len(levels) > 1 else 0
    if not held or not np.any(usable & ~np.isin(np.arange(len(usable)), parts[0])):
        return why(Why.NOTHING_HELD_OUT, variable=name, distinct=len(levels))
    return parts


def _variable(by: str) -> str:
    return "D" if by == "last" else by


def _last(data: Data, column: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """The rows of the largest D of every run that has two, or else of every N that has."""
    lines = [np.asarray(data[name]) for name in ("run", "N") if name in data]
    for labels in lines:
        own = [_levels(column, usable & (labels == label)) for label in dict.fromkeys(labels[usable].tolist())]
        if ends := [_end(levels) for levels in own if len(levels) > 1]:
            return np.sort(np.concatenate(ends))
    return np.empty(0, int)


def _fold(
    law: Law, data: Data, column: np.ndarray, rows: np.ndarray, usable: np.ndarray, options: dict[str, Any]
) -> Fold:
    keep = usable.copy()
    keep[rows] = False
    sigma = options.get("sigma")
    if sigma is not None and np.ndim(sigma):
        options = {**options, "sigma": np.asarray(sigma)[keep]}
    result = fit(law, {name: np.asarray(values)[keep] for name, values in data.items()}, **options)
    there = {name: np.asarray(data[name], float)[rows] for name in law.columns}
    predicted = law.predict(result.values, there) if result.identified else np.full(len(rows), np.nan)
    observed = np.asarray(data[law.response], float)[rows]
    return Fold(tuple(np.unique(column[rows]).tolist()), rows, observed, np.asarray(predicted, float), result)


def _levels(column: np.ndarray, usable: np.ndarray) -> list[np.ndarray]:
    """The rows of each distinct value, in rising order; values within 5 % of the first count as one."""
    levels: list[list[int]] = []
    last = -math.inf
    for row in sorted(np.flatnonzero(usable), key=lambda i: column[i]):
        if not levels or column[row] - last > SAME_SIZE * last:
            levels.append([])
            last = column[row]
        levels[-1].append(int(row))
    return [np.array(rows) for rows in levels]


def _end(levels: list[np.ndarray]) -> np.ndarray:
    """The highest levels that hold at least a tenth of the points between them."""
    least, chosen = MIN_SHARE * sum(map(len, levels)), []
    for rows in reversed(levels):
        chosen.append(rows)
        if sum(map(len, chosen)) >= least:
            break
    return np.sort(np.concatenate(chosen))


def _summary(law: Law, by: str, folds: tuple[Fold, ...], status: FitStatus) -> HeldOut:
    observed = np.concatenate([fold.observed for fold in folds]) if folds else np.empty(0)
    nothing = dict.fromkeys(("error", "absolute_error", "bias", "log_error"), math.nan)
    if status.kind is not FitKind.OK:
        return HeldOut(law.name, by, folds, status, len(observed), **nothing, n_log=0)
    predicted = np.concatenate([fold.predicted for fold in folds])
    gap, both = predicted - observed, (predicted > 0) & (observed > 0)
    ratio = np.log(predicted[both] / observed[both])
    return HeldOut(
        law=law.name,
        by=by,
        folds=folds,
        status=status,
        n_held_out=len(observed),
        error=float(np.sqrt(np.mean(np.square(gap)))),
        absolute_error=float(np.median(np.abs(gap))),
        bias=float(np.mean(gap)),
        log_error=float(np.sqrt(np.mean(np.square(ratio)))) if len(ratio) else math.nan,
        n_log=int(np.sum(both)),
    )
