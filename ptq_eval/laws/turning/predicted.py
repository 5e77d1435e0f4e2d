"""D_crit: the number of pretraining tokens beyond which more data makes the quantized model worse.

The quantized loss is L(D) + delta(D).  The first falls as B/D^beta, the second grows as D^gamma_D; their sum
has its minimum where the derivative is zero (Kumar et al., arXiv 2411.04330, eq. 13):

    D_crit = [ beta·B·N^gamma_N·e^{P/gamma_post} / (gamma_D·C_T) ]^{1/(gamma_D + beta)}

Every degradation law has its own `critical_tokens`; `predict` adds the interval, from both bootstraps row by row (they
share their resamples), and refuses a value that the points do not determine: one whose interval spans more than a
factor of `MAX_SPREAD`, or that is farther out than `REACH` times the range of D.  An interval covers how the
constants of a law scatter, not whether the law still holds out there, and over a short range any smooth curve passes
for a power law.

A prediction is one thing, an observation another, a forecast from the run's own checkpoints a third.  `CriticalTokens`
has all of them, and `turning.verdict` says which of them counts.  A table of a user has no evaluation windows, so no
rise in it can be called significant and its verdicts are never "observed".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ptq_eval.laws.base import Data, Estimate, FitKind, FitResult, Law
from ptq_eval.laws.findings import Finding, Why, why
from ptq_eval.laws.fit import bootstrap
from ptq_eval.laws.quality import Scatter, finite_or_none
from ptq_eval.laws.turning.observed import TurningPoint, turning_point
from ptq_eval.laws.turning.verdict import Forecast, PoorFit, Verdict, refutation, verdict
from ptq_eval.results.points import Curve

MAX_SPREAD = 100.0
"""D_crit is not identified if the ends of its interval differ by more than this factor."""

MIN_R2, MAX_SCATTER = 0.5, 0.5
"""A fit that explains less of the variance, or scatters by more, describes its points poorly."""

REACH = 2.0
"""How far beyond the largest D a prediction may lie, in units of the range of D seen, both as logarithms: from a range
of 4× as far as 16×."""

MAX_PLACES = 500
"""Combinations of N and P beyond which a table gives no list: one point each is no trajectory."""


@dataclass(frozen=True)
class CriticalTokens:
    """What is known about D_crit of one run at one bit-width; D in tokens, `rise` in nats per token.

    `at` holds the variables beside N and bits that it holds for: a floating-point format, a group size, training
    precisions.  `trained_as_served`: the model is trained in the precision that is served; nothing is quantized after.
    `predicted` is None where there is no prediction, and where the measurements refute it (`verdict.withheld`).
    """

    run: str
    params: float
    quantizer: str
    bits: float
    largest_tokens: float
    predicted: Estimate | None
    observed: TurningPoint
    verdict: Verdict
    forecast: Forecast | None = None
    full_precision_rise: float = math.nan
    """What the full-precision loss rises by between the same two checkpoints as `observed.rise`."""
    at: Mapping[str, float] = field(default_factory=dict)
    trained_as_served: bool = False

    @property
    def extrapolation_factor(self) -> float:
        """The prediction as a multiple of the largest D seen; NaN without one."""
        return self.predicted.value / self.largest_tokens if self.predicted else math.nan

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; what is not finite becomes None."""
        return {
            "run": self.run,
            "params": finite_or_none(self.params),
            "quantizer": self.quantizer,
            "bits": finite_or_none(self.bits),
            "largest_tokens": finite_or_none(self.largest_tokens),
            "predicted": self.predicted.to_dict() if self.predicted else None,
            "extrapolation_factor": finite_or_none(self.extrapolation_factor),
            "observed_tokens": finite_or_none(self.observed.tokens),
            "observed": self.observed.place.to_dict(),
            "n_checkpoints": self.observed.n_checkpoints,
            "interior": self.observed.interior,
            "rise": finite_or_none(self.observed.rise),
            "rise_se": finite_or_none(self.observed.rise_se),
            **self.observed.test_to_dict(),
            "full_precision_rise": finite_or_none(self.full_precision_rise),
            "forecast": self.forecast.to_dict() if self.forecast else None,
            **self.verdict.to_dict(),
            "trained_as_served": self.trained_as_served,
            **({"at": dict(self.at)} if self.at else {}),
        }


def critical_tokens(
    law: Law, result: FitResult, data: Data, curve: FitResult, after: np.ndarray | None, *, seed: int = 0
) -> Iterator[CriticalTokens]:
    """D_crit at every N and P (and whatever else `law` reads) of a user's table `data`.

    `curve` is the fit of the loss before quantization with its B and beta: that of `law` itself if its response
    is the loss after quantization.  after [n]: the measured loss after quantization, None if unknown.
    """
    others = [name for name in law.columns if name != "D"]
    places = np.unique(np.column_stack([data[name] for name in others]), axis=0)
    for place in places if len(places) <= MAX_PLACES else ():
        at = dict(zip(others, (float(value) for value in place)))
        rows = np.all([data[name] == value for name, value in at.items()], axis=0)
        tokens = data["D"][rows] if "D" in data else np.array([math.nan])
        observed, withheld = TurningPoint(math.nan, Estimate(math.nan), False, math.nan, math.nan), None
        predicted, reason = predict(law, result, curve, at, tokens=data.get("D"))
        if after is not None:
            observed = turning_point(tokens, after[rows], None, seed=seed, n_boot=0)
            withheld = refutation(predicted, Curve(tokens, after[rows]), observed)
        largest = float(tokens.max())
        yield CriticalTokens(
            run="",
            params=at["N"],
            quantizer="",
            bits=at.get("P", math.nan),
            largest_tokens=largest,
            predicted=None if withheld else predicted,
            observed=observed,
            verdict=verdict(predicted, reason, largest, level=result.level, withheld=withheld),
            at={name: value for name, value in at.items() if name not in ("N", "P")},
            trained_as_served=law.response == "loss" and "P" not in law.columns,
        )


def predict(
    law: Any,
    result: FitResult,
    curve: FitResult,
    at: Mapping[str, float],
    *,
    tokens: Any = None,
    doubt: Callable[[], Finding | None] = lambda: None,
) -> tuple[Estimate | None, Finding | None]:
    """D_crit of `law` with its interval at the variables `at` (N, P, …), or None and why there is none.

    result: the fit of `law`; curve: the fit of the loss before quantization, with B and beta (`result` itself for a law
    of the loss after quantization).  tokens [n]: the D that were fitted, to judge how far they reach.  doubt: asked
    last, whether the points at hand follow the law at all.
    """
    if reason := missing_prediction_reason(law, result, curve):
        return None, reason
    if not hasattr(law, "critical_tokens"):
        return None, why(Why.LAW_HAS_NO_TURN, law=law.name)
    value = float(_at(law, result.values, curve.values, at))
    if not math.isfinite(value):
        return None, why(Why.NO_TURN)
    tables = [dict(zip(fit.estimates, fit.replicates.T)) if len(fit.replicates) else {} for fit in (result, curve)]
    draws = np.asarray(_at(law, tables[0], tables[1], at) if all(tables) else np.empty(0), float)
    factor = max(result.stretch, curve.stretch)
    found = Estimate(value, *bootstrap.interval(value, draws, factor=factor, level=result.level, log=True))
    reason = wide_interval_reason(found) or doubt()
    if not reason and tokens is not None:
        reason = short_range_reason(value, tokens)
    return (None, reason) if reason else (found, None)


def _at(law: Any, theta: Mapping[str, Any], loss: Mapping[str, Any], at: Mapping[str, float]) -> Any:
    with np.errstate(all="ignore"):
        own = law.response == "loss"
        return law.critical_tokens(theta, theta if own else loss, at)


def missing_prediction_reason(law: Law, result: FitResult, curve: FitResult) -> Finding | None:
    """What in the fits of `law` and of the loss before quantization forbids a prediction; None if nothing does."""
    if law.response == "delta":
        return degradation_reason(result, curve)
    return None if result.identified else why(Why.LAW_NOT_FITTED, law=result.law, fit=result.status.reason)


def degradation_reason(delta: FitResult, loss: FitResult) -> Finding | None:
    """What in the fits of a degradation law and of a full-precision curve forbids a prediction; None if nothing."""
    if not delta.identified:
        return why(Why.DELTA_NOT_FITTED, fit=delta.status.reason)
    if not loss.identified:
        return why(Why.LOSS_NOT_FITTED, fit=loss.status.reason)
    stuck = delta.status.at_bound
    if delta.status.kind is FitKind.NOT_CONVERGED:
        return why(Why.NOT_CONVERGED)
    if stuck:
        kind = Why.BITS_AT_BOUND if stuck == ("gamma_post",) else Why.CONSTANT_AT_BOUND
        return why(kind, constants=list(stuck))
    if slope := [name for name in ("B", "beta") if name in loss.status.at_bound]:
        return why(Why.LOSS_NO_POWER_LAW, constants=slope)
    name = "gamma_D" if "gamma_D" in delta.estimates else "gamma"
    growth = delta.estimates.get(name)
    if growth is not None and (growth.value <= 0 or growth.low <= 0):
        return why(Why.DELTA_DOES_NOT_GROW, constant=name, **growth.to_dict())
    return None


def wide_interval_reason(found: Estimate) -> Finding | None:
    """Whether the interval of a D_crit shows that it is not identified; without an interval nothing is known."""
    if math.isnan(found.low) or found.high <= MAX_SPREAD * found.low:
        return None
    return why(Why.WIDE_INTERVAL, low=found.low, high=found.high)


def short_range_reason(value: float, tokens: Any) -> Finding | None:
    """Whether the range of `tokens` [n], the D that were fitted, is too short for D_crit = `value`."""
    low, high = float(np.min(tokens)), float(np.max(tokens))
    if value <= high * (high / low) ** REACH:
        return None
    return why(Why.SHORT_RANGE, low=low, high=high, factor=value / high)


def poor_fit(fit: FitResult) -> PoorFit | None:
    """How poorly a law describes its points; None if it does well enough, or has no constants.

    R² is of the response itself: an R² of logarithms ignores negative values.
    """
    relative = math.nan if fit.scatter_kind is Scatter.RESPONSE else fit.scatter
    poor = fit.identified and (fit.r2 < MIN_R2 or relative > MAX_SCATTER)
    return PoorFit(fit.r2, relative) if poor else None
