"""A fit to few points: what they determine is found, and the rest is held.

Constants that a law knows to be out of reach of so few values (`Law.held`) are held from the start.  Others show in the
derivatives: where some constants can change together without changing the prediction, one of them is held at where the
search ended, and the rest is fitted again.  What was held, and why, is part of the answer: the others hold only
together with it.  Whoever fits one table wants that; inside a report such a fit is reported as not determined.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from scipy import stats

from ptq_eval.laws.base import Data, FitKind, FitResult, Law
from ptq_eval.laws.findings import Finding, Why
from ptq_eval.laws.fit.fit import fit, minimum
from ptq_eval.laws.fit.restrict import restrict
from ptq_eval.laws.fit.solver import to_theta

SIGNIFICANCE = 0.05
"""The level at which a law must describe its points better than their mean."""


@dataclass(frozen=True)
class Held:
    """A fit with the constants that it holds beside those that the caller fixed, and why each."""

    result: FitResult
    reasons: Mapping[str, Finding] = field(default_factory=dict)


def holding(
    law: Law,
    data: Data,
    fixed: Mapping[str, float],
    tied: Iterable[tuple[str, str]] = (),
    bounds: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, tuple[float, Finding]]:
    """What `law` itself holds for these points, within `bounds`, without what the caller fixes or ties."""
    own = {*fixed, *(name for pair in tied for name in pair)}
    found = {}
    for name, (value, why) in law.held(data).items():
        low, high = (bounds or {}).get(name, (value, value))
        if name not in own:
            found[name] = min(max(value, low), high), why
    return found


def fit_held(
    law: Law,
    data: Data,
    fixed: Mapping[str, float],
    tied: Iterable[tuple[str, str]] = (),
    bounds: Mapping[str, tuple[float, float]] | None = None,
    **options: Any,
) -> Held:
    """`fit` with `fixed`, `tied` and `bounds`, and with whatever the points do not determine held."""
    tied = list(tied)
    first = holding(law, data, fixed, tied, bounds)
    values = {**fixed, **{name: value for name, (value, _) in first.items()}}
    reasons = {name: why for name, (_, why) in first.items()}
    searched = restrict(law, values, tied, bounds)
    result = fit(searched, data, **options)
    while (name := _blind(searched, result)) and searched.n_free > 1:
        solution = minimum(searched, data, **{key: options[key] for key in ("loss", "huber_delta", "seed")})
        values[name] = float(to_theta(searched, solution.point)[name][0])
        assert result.status.reason is not None
        reasons[name] = result.status.reason
        searched = restrict(law, values, tied, bounds)
        result = fit(searched, data, **options)
    return Held(result, reasons)


def determines(result: FitResult, held: Iterable[str]) -> bool:
    """Whether a fit says anything: some constant that is not held is away from its bounds, and limited on a side."""
    if not result.identified:
        return False
    passed = {*held, *result.status.at_bound, *result.fixed}
    found = [estimate for name, estimate in result.estimates.items() if name not in passed]
    return any(len(estimate.open) < 2 for estimate in found)


def explains(result: FitResult, held: Iterable[str]) -> bool:
    """Whether a law of two or more free constants describes its points better than their mean: an F test of the share
    of the weighted sum of squares that it leaves, at `SIGNIFICANCE`.

    True where no test is possible: there are no more points than constants.
    """
    passed = {*held, *result.fixed}
    free, n = sum(name not in passed for name in result.estimates), result.n_points
    if free < 2 or n <= free:
        return True
    if math.isnan(result.r2_weighted):  # all responses are the same
        return False
    left = max(1 - result.r2_weighted, 0.0)
    ratio = math.inf if left == 0 else (1 - left) / (free - 1) / (left / (n - free))
    return bool(stats.f.sf(ratio, free - 1, n - free) <= SIGNIFICANCE)


def _blind(law: Law, result: FitResult) -> str | None:
    """Which constant to hold next: of those that trade off, one in which the law is not linear, the last of them."""
    reason = result.status.reason
    if result.status.kind is not FitKind.NOT_IDENTIFIED or reason is None or reason.kind is not Why.NOT_SEPARABLE:
        return None
    names = [p.name for p in law.parameters if p.name in reason.facts["constants"]]
    bent = [name for name in names if name not in law.linear]
    return (bent or names)[-1] if names else None
