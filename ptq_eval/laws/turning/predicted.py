"""D_crit: the number of pretraining tokens beyond which more data makes the quantized model worse.

The quantized loss is L(D) + delta(D).  The first falls as B/D^beta, the second grows as D^gamma_D; their sum
has its minimum where the derivative is zero (Kumar et al., arXiv 2411.04330, eq. 13):

    D_crit = [ beta·B·N^gamma_N·e^{P/gamma_post} / (gamma_D·C_T) ]^{1/(gamma_D + beta)}

The form in D/N is the same with gamma_N = gamma_D.  Its interval comes from both bootstraps, row by row: they
share their resamples.  A prediction is one thing, an observation another; both are given, and one sentence
says what they amount to.  A prediction beyond `FARTHEST` times the largest D seen is printed but not
believed.  None is given where the points do not identify it: where the interval spans more than a factor of `VAGUE`,
and where D_crit lies farther out than `REACH` times the range of D.  An interval knows how the constants of a law
scatter, not whether the law still holds out there, and over a short range any smooth curve passes for a power law.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ptq_eval.laws.base import Estimate, FitResult, finite_or_none
from ptq_eval.laws.fit import bootstrap
from ptq_eval.laws.turning.observed import MIN_FOR_MEDIAN, TurningPoint

FARTHEST = 100.0
"""How many times the largest D seen a prediction may lie and still be called one."""

VAGUE = 100.0
"""An interval whose ends are farther apart than this factor says that D_crit is not identified."""

POOR_R2, POOR_SCATTER = 0.5, 0.5
"""A fit that explains less of the variance than this, or scatters by more, is said to describe its points poorly."""

REACH = 2.0
"""How far beyond the largest D a prediction may lie, in units of the range of D seen, both as logarithms: from a range
of 4× as far as 16×."""

OWN_SHARE, MAIN_SHARE = 0.2, 0.5
"""From which share of an observed rise on the full-precision loss's own rise is named, and blamed."""


@dataclass(frozen=True)
class CriticalTokens:
    """What is known about D_crit of one run at one bit-width; D in tokens, `rise` in nats per token."""

    run: str
    params: float
    quantizer: str
    bits: float
    predicted: Estimate | None
    extrapolation_factor: float
    observed: TurningPoint
    verdict: str
    full_precision_rise: float = math.nan
    """What the full-precision loss rises by between the same two checkpoints as `observed.rise`."""
    at: Mapping[str, float] = field(default_factory=dict)
    """The variables beside N and bits that it holds for: a floating-point format, a group size, training precisions."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; what is not finite becomes None."""
        return {
            "run": self.run,
            "params": finite_or_none(self.params),
            "quantizer": self.quantizer,
            "bits": finite_or_none(self.bits),
            "predicted": self.predicted.to_dict() if self.predicted else None,
            "extrapolation_factor": finite_or_none(self.extrapolation_factor),
            "observed_tokens": finite_or_none(self.observed.tokens),
            "observed": self.observed.place.to_dict(),
            "interior": self.observed.interior,
            "rise": finite_or_none(self.observed.rise),
            "rise_se": finite_or_none(self.observed.rise_se),
            "full_precision_rise": finite_or_none(self.full_precision_rise),
            "verdict": self.verdict,
            **({"at": dict(self.at)} if self.at else {}),
        }


def closed_form(delta: Mapping[str, Any], loss: Mapping[str, Any], N: float, P: float) -> Any:
    """D_crit in tokens from the constants of a degradation law and of a full-precision curve.

    delta: C_T, gamma_D, gamma_N, gamma_post (or C, gamma, gamma_post); loss: B, beta.  Floats or arrays of
    one shape.  Infinite where delta does not grow with D.
    """
    gamma_D = np.asarray(delta.get("gamma_D", delta.get("gamma")), float)
    gamma_N = delta.get("gamma_N", delta.get("gamma"))
    factor = delta.get("C_T", delta.get("C"))
    growing = np.where(gamma_D > 0, gamma_D, 1.0)
    logarithm = np.log(loss["beta"]) + np.log(loss["B"]) + gamma_N * np.log(N) + P / delta["gamma_post"]
    logarithm = (logarithm - np.log(growing) - np.log(factor)) / (growing + loss["beta"])
    return np.where((gamma_D > 0) & (logarithm < 700), np.exp(np.minimum(logarithm, 700)), np.inf)[()]


def predict(delta: FitResult, loss: FitResult, N: float, P: float) -> tuple[Estimate | None, str]:
    """D_crit with its interval, or None and the reason why there is none."""
    if reason := obstacle(delta, loss):
        return None, reason
    value = float(closed_form(delta.values, loss.values, N, P))
    if not math.isfinite(value):
        return None, "the closed form overflows"
    tables = [dict(zip(result.estimates, result.replicates.T)) for result in (delta, loss)]
    replicates = closed_form(tables[0], tables[1], N, P)
    factor = max(delta.stretch, loss.stretch)
    found = Estimate(value, *bootstrap.interval(value, replicates, factor=factor, level=delta.level, log=True))
    reason = vague(found)
    return (None, reason) if reason else (found, "")


def vague(found: Estimate) -> str:
    """Why the interval of a D_crit says that it is not identified, or ""; without an interval nothing is said."""
    low, high = found.low, found.high
    if math.isnan(low) or high <= VAGUE * low:
        return ""
    return f"D_crit is not identified, its interval spans {low:.2g} to {high:.2g} tokens: the range is too short"


def out_of_reach(value: float, tokens: Any) -> str:
    """Why the range of `tokens` [n], the D that were fitted, is too short to say D_crit = `value`, or ""."""
    low, high = float(np.min(tokens)), float(np.max(tokens))
    if value <= high * (high / low) ** REACH:
        return ""
    return (
        f"D_crit is not identified, the range of D ({low:.3g} to {high:.3g} tokens, {high / low:.3g}×) is too short "
        f"for {value / high:.3g}× the largest D"
    )


def poorly(fit: FitResult) -> str:
    """How poorly a law describes its points, as "R² = −0.2, scatter 81 %"; "" where it does well enough.

    R² is that of the response itself, as an R² of logarithms leaves out what is negative.
    """
    if not fit.identified or not (fit.r2 < POOR_R2 or fit.scatter > POOR_SCATTER):
        return ""
    scatter = f", scatter {100 * fit.scatter:.2g} %" if math.isfinite(fit.scatter) else ""
    return f"R² = {fit.r2:.2g}{scatter}".replace("= -", "= −")


def obstacle(delta: FitResult, loss: FitResult) -> str:
    """What in the two fits forbids a prediction, as words, or ""."""
    if not delta.identified:
        return f"the degradation law has {delta.message}"
    if not loss.identified:
        return f"the full-precision curve has {loss.message}"
    if delta.status == "at_bound: gamma_post":
        return "how delta falls with the bits is not determined by these bit-widths (gamma_post is at its bound)"
    if delta.status != "ok":
        return f"a constant of the degradation law is {delta.status.replace('_', ' ', 1)}"
    if any(name in loss.status for name in ("B", "beta")):
        return "the full-precision loss is not seen to fall with D as a power law"
    name = "gamma_D" if "gamma_D" in delta.estimates else "gamma"
    growth = delta.estimates.get(name)
    if growth is not None and (growth.value <= 0 or growth.low <= 0):
        low, high = f"{growth.low:.2g}", f"{growth.high:.2g}"
        return f"delta is not seen to grow with D ({name} = {growth.value:.2g}, interval {low} to {high})"
    return ""


def verdict(
    N: float,
    largest: float,
    predicted: Estimate | None,
    why_not: str,
    observed: TurningPoint,
    full_rises: bool,
    full_rise: float = math.nan,
    poor: str = "",
) -> str:
    """One plain sentence on what is known; `largest` is the largest D seen, `full_rises` says whether the
    full-precision loss itself turns upward, `full_rise` by how much it rises where the quantized one does, and
    `poor` how poorly the law describes the deltas (see `poorly`)."""
    if observed.interior:
        text = f"harmful beyond D = {_tokens(observed.place.value, N)}, observed inside the range"
        return text + _own(observed.rise, full_rise, full_rises) + _few(observed)
    if full_rises:
        return "not identifiable: the full-precision loss itself rises inside the range"
    if predicted is None:
        return f"not identifiable: {why_not}"
    ratio = predicted.value / largest
    if ratio > FARTHEST:
        return f"not identifiable: the fits point to {ratio:.3g}× the largest D seen, too far to believe"
    text = f"predicted at {ratio:.3g}× the largest D seen, D = {_tokens(predicted.value, N)}"
    if ratio < 1:
        text += _contradiction(largest, observed, N)
    return text + (f"; the law describes these deltas poorly ({poor})" if poor else "")


def _contradiction(largest: float, observed: TurningPoint, N: float) -> str:
    """What the measurement says of a turn that is predicted inside its range and was not seen there."""
    if observed.n_checkpoints < 2:
        return "; inside the range of the fit, where this run has no second checkpoint to check it by"
    if observed.tokens == largest:
        return f"; contradicted by the measurement: the loss still falls to D = {_tokens(largest, N)}"
    lowest = _tokens(observed.tokens, N)
    return f"; not confirmed by the measurement: the loss is least at D = {lowest}, yet no turn is observed there"


def _own(rise: float, full_rise: float, full_rises: bool) -> str:
    """What the full-precision loss has to do with an observed rise; "" where little or nothing."""
    if full_rise > MAIN_SHARE * rise or full_rises:
        size = f" ({full_rise:.3g} of {rise:.3g} nats per token)" if full_rise > 0 else ""
        return f"; but the full-precision loss rises too{size}: quantization is not alone to blame"
    if full_rise > OWN_SHARE * rise:
        return f"; the rise is {rise:.3g} nats per token, of which {full_rise:.3g} is the full-precision loss's own"
    return ""


def _few(observed: TurningPoint) -> str:
    n = observed.n_checkpoints
    return f"; with only {n} checkpoints it is hardly known how they scatter" if n < MIN_FOR_MEDIAN else ""


def _tokens(tokens: float, N: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if tokens >= size:
            return f"{tokens / size:.3g}{unit} tokens (D/N = {tokens / N:.3g})"
    return f"{tokens:.3g} tokens (D/N = {tokens / N:.3g})"
