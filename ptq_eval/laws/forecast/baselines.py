"""What a forecast is held against: three ways to continue the curves that anybody would try first.

All three continue the full-precision loss by E + B·D^−beta fitted to all checkpoints up to the origin.  Delta stays as
it is (`staying`), follows the joint law of Kumar et al. over all bit-widths (`joint`, arXiv 2411.04330, eq. 2 for one
size), or a power of D per bit-width (`power`).  Their intervals are the usual ones of the field: constants from a
bootstrap (of residuals for the two curves fitted here, of `laws.fit` for the joint law), and the residuals' scatter on
top for what a checkpoint measures.  Nothing accounts for a law that is wrong.  Where the joint law is not identified,
delta stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from ptq_eval.laws.base import FitResult
from ptq_eval.laws.fit.fit import fit
from ptq_eval.laws.forecast.candidates import fit_falling
from ptq_eval.laws.forecast.forecast import N_DRAWS, Paths, draw, learn
from ptq_eval.laws.forecast.series import Series
from ptq_eval.laws.formulas.kumar import KumarPTQRatio

Method = Callable[[Sequence[Series], Sequence[Series], np.ndarray, int], Iterator[Paths]]
"""method(group, siblings, x, seed) gives the paths at log D = x [m] of each series in `group`, the bit-widths of one
quantizer; siblings are all series of the run; none goes beyond the origin."""

REPLICATES = 20
_LEAST = 1e-9


def forecast(group: Sequence[Series], siblings: Sequence[Series], x: np.ndarray, seed: int) -> Iterator[Paths]:
    """The forecast itself (`forecast.draw`)."""
    learned = learn(siblings)
    for series in group:
        yield draw(series, siblings, x, learned=learned, seed=seed)


def _baseline(
    kind: str, group: Sequence[Series], siblings: Sequence[Series], x: np.ndarray, seed: int
) -> Iterator[Paths]:
    law = _joint(group, seed) if kind == "joint" else None
    for series in group:
        rng = np.random.default_rng([seed, len(series.tokens)])
        places = np.concatenate([series.x, x])
        loss, loss_scatter = _falling(series, places, rng)
        if law is not None:
            delta, scatter = _predicted(law, series, places)
        elif kind == "power":
            delta, scatter = _power(series, places, rng)
        else:
            delta, scatter = np.full((1, len(places)), series.delta[-1]), np.full(len(places), series.se[-1])
        loss, delta = (each[rng.integers(len(each), size=N_DRAWS)] for each in (loss, delta))
        measured = delta + scatter * rng.standard_normal(delta.shape)
        after = loss + loss_scatter * rng.standard_normal(loss.shape) + measured
        yield Paths(places, loss + delta, delta, after, measured)


def _falling(series: Series, x: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """E + B·D^−beta at x from refits to resampled residuals, [replicates, m], and the residuals' scatter."""
    past, y = series.x, series.loss_fp

    def curves(responses: np.ndarray, at: np.ndarray) -> np.ndarray:
        decay, factors = fit_falling(past, responses)
        found = factors[:, :1] + factors[:, 1:2] * np.exp(-decay[:, None] * (at - past[-1]))
        return found[np.isfinite(decay)]

    best = curves(y[None], past)
    if not len(best):
        return np.full((1, len(x)), y[-1]), float(np.std(y, ddof=1))
    residual = y - best[0]
    inflated = residual * np.sqrt(len(y) / max(len(y) - 3, 1))
    refits = curves(best + inflated[rng.integers(len(y), size=(REPLICATES, len(y)))], x)
    refits = refits if len(refits) else curves(y[None], x)
    return refits, float(np.sqrt(np.mean(inflated**2)))


def _power(series: Series, x: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A·D^g at x from refits to resampled residuals of log delta, [replicates, m], and the scatter of delta [m].

    Deltas that are not positive count as one standard error.
    """
    past = series.x
    y = np.log(np.maximum(series.delta, np.maximum(series.se, _LEAST)))
    columns = np.column_stack([np.ones_like(past), past])
    best = np.linalg.lstsq(columns, y, rcond=None)[0]
    residual = (y - columns @ best) * np.sqrt(len(y) / max(len(y) - 2, 1))
    resampled = columns @ best + residual[rng.integers(len(y), size=(REPLICATES, len(y)))]
    constants = np.linalg.lstsq(columns, resampled.T, rcond=None)[0]
    curves = np.exp(np.clip(constants[0][:, None] + constants[1][:, None] * x, -30, 5))
    return curves, np.median(curves, axis=0) * float(np.sqrt(np.mean(residual**2)))


def _joint(group: Sequence[Series], seed: int) -> FitResult | None:
    """The joint law over the bit-widths of a quantizer, None where it is not identified."""
    columns = {"D": "tokens", "delta": "delta", "se": "se"}
    data = {name: np.concatenate([getattr(s, field) for s in group]) for name, field in columns.items()}
    data["N"] = np.concatenate([np.full_like(s.tokens, s.params) for s in group])
    data["P"] = np.concatenate([np.full_like(s.tokens, s.bits) for s in group])
    data["run"] = np.array([group[0].run] * len(data["D"]))
    data["checkpoint"] = np.array([f"{D:.0f}" for D in data["D"]])
    alone = len({s.bits for s in group}) == 1
    result = fit(KumarPTQRatio(gamma_post=1.0 if alone else None), data, seed=seed, n_boot=REPLICATES)
    return result if result.identified and len(result.replicates) else None


def _predicted(result: FitResult, series: Series, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The joint law at x from its replicates, [replicates, m], and the scatter of delta that it found, [m]."""
    theta = dict(zip(result.estimates, result.replicates.T[:, :, None]))
    at = {"N": np.full_like(x, series.params), "D": np.exp(x), "P": np.full_like(x, series.bits)}
    curves = np.clip(KumarPTQRatio().predict(theta, at), 0, np.exp(5))
    return curves, np.hypot(result.scatter * np.median(curves, axis=0), series.se[-1])


FORECAST = "forecast"
METHODS: dict[str, Method] = {
    FORECAST: forecast,
    "staying": partial(_baseline, "staying"),
    "joint": partial(_baseline, "joint"),
    "power": partial(_baseline, "power"),
}
"""By name; the first is the forecast, the others are baselines."""
