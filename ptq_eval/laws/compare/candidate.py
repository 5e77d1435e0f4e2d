"""One law among others on the same records: its fit, its AICc under common weights, its errors on held-out points.

A residual in nats would let the largest deltas decide, and a logarithm is not defined for delta ≤ 0.  The error of a
point is

    e = |y − f| / sqrt(se² + ((|y| + |f|)/2)²)

relative if delta exceeds its noise, small if both are within it, and at most 2, so that one absurd extrapolation cannot
dominate.

A constant that these records cannot determine in any law (gamma_N with one N, the effect of bits at one bit-width) is
fixed at a value that changes no prediction here, and not counted.  The rest of the law is compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ptq_eval.laws.base import Data, FitResult, Law, n_distinct
from ptq_eval.laws.compare.crossval import held_out
from ptq_eval.laws.fit.fit import fit
from ptq_eval.laws.fit.requirements import standard_errors

KINDS = ("D", "N", "P")
"""The variables by which points are held out: the largest D, the largest N, each bit-width."""
_FIXED = {"gamma_N": 0.0, "gamma_D": 0.0, "gamma_G": 0.0, "gamma_P": 1.0, "gamma_post": 1.0}
_VARIABLE = {"gamma_post": "P"}


class Candidate:
    """One law on the records: its fit, the constants fixed for it (`given`), its AICc under the common weights, the
    variables it has `ignored`, and the `errors` [n] of each kind of held-out points, NaN for points that were kept."""

    def __init__(
        self,
        name: str,
        law: Law,
        given: Mapping[str, float],
        result: FitResult,
        data: Data,
        sigma: np.ndarray | None,
        options: Mapping[str, Any],
    ) -> None:
        """`sigma` [n]: the common weights, None for a logarithmic loss, where all points weigh the same."""
        self.name, self.given, self.result, self.ignored = name, given, result, unread(law, data)
        plain: dict[str, Any] = {**options, "intervals": "none", "fixed": dict(given) or None}
        judged = result if sigma is None else fit(law, data, sigma=sigma, **plain)
        self.aicc, self.log_density = judged.aicc, _log_density(judged)
        self.errors = {kind: _errors(law, data, kind, plain) for kind in KINDS}

    @property
    def n_free(self) -> int:
        """How many constants were fitted."""
        return len(self.result.estimates) - len(self.given)

    def error(self, kinds: Sequence[str]) -> float:
        """The mean held-out error over `kinds`, each counting the same."""
        means = [float(np.nanmean(self.errors[kind])) for kind in kinds]
        return float(np.mean(means)) if means else math.nan


def undetermined(law: Law, data: Data, variables: Sequence[str] = ("N", "D", "P", "G")) -> dict[str, float]:
    """The constants of `law` that belong to one of `variables` with a single value in `data`, at values that change
    nothing."""
    found = {}
    for p in law.parameters:
        variable = _VARIABLE.get(p.name, p.name.removeprefix("gamma_"))
        if p.name in _FIXED and variable in variables and variable in law.columns and n_distinct(data[variable]) < 2:
            found[p.name] = _FIXED[p.name]
    return found


def weights(law: Law, result: FitResult, data: Data) -> np.ndarray:
    """The sigma [n] under which other laws are judged beside this one: its own, with (|y| + |f|)/2 for f."""
    size = (np.abs(law.predict(result.values, data)) + np.abs(data[law.response])) / 2
    se = standard_errors(data.get("se", np.zeros(len(size))))
    return np.hypot(se, result.scatter * np.maximum(size, 1e-9 * size.max()))


def _errors(law: Law, data: Data, kind: Any, options: Mapping[str, Any]) -> np.ndarray:
    """The error [n] of every point that this kind holds out; NaN for the others."""
    y, se = data[law.response], standard_errors(data.get("se", np.zeros(len(data[law.response]))))
    f = np.full(len(y), math.nan)
    for fold in held_out(law, data, by=kind, **options).folds:
        f[fold.rows] = fold.predicted
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.abs(y - f) / np.hypot(se, (np.abs(y) + np.abs(f)) / 2)


def _log_density(result: FitResult) -> np.ndarray:
    """The log-likelihood of each point [n] up to a constant: of the loss's density, at the scale that suits it best.

    Squares have the normal density, absolute values Laplace's; Huber's loss counts as the one that most points see.
    """
    r = np.abs(result.residuals)
    k = result.huber_delta
    cost = r if k == 0 else np.minimum(r, k) * (r - 0.5 * np.minimum(r, k))
    power = 0.5 if k > np.median(r) else 1.0
    scale = max(float(cost.mean()) / power, 1e-300)
    return -cost / scale - power * math.log(scale)


def unread(law: Law, data: Data) -> tuple[str, ...]:
    """The variables that change in these points and that the law does not read."""
    ignored = [name for name in ("N", "D", "P", "G") if name in data and name not in law.columns]
    return tuple(name for name in ignored if np.isfinite(data[name]).all() and n_distinct(data[name]) > 1)
