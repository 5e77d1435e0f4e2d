"""Fit any law to any data: weighted, robust, from many starts, with intervals that mean something.

The response is fitted as it is, not its logarithm, because delta may be negative and its noise is additive.
What weight a point deserves is the question.  Delta spans orders of magnitude, its evaluation error is often
a thousandth of it, and no law is that exact; weighted by evaluation error alone the largest deltas would
decide everything.  So

    sigma² = se² + (tau · f)²,      f being the law's own prediction,

with one relative scatter tau for all points, raised until the residuals are as large as sigma says (reduced
chi² = 1, in Huber's robust form: "proposal 2") and never below the law's own `min_scatter`.  Tau is
reported: it is the precision of the law on these data.  Weights and constants depend on each other and are
iterated to a fixed point; weights come from predictions, not from measured values, which would favour points
that came out low.  A logarithmic loss weights all points alike unless `sigma` is given: relative errors are its scale.
So do plain least squares ("least-squares"), in the response itself.

The steps are files of their own: `requirements` (columns and units), `losses` (what a residual costs), `restrict`
(constants fixed, tied or bounded), `search` and `solver` (the minimum), `bootstrap` and `profile` (intervals),
`diagnostics` (AICc, leverage, what is not determined).  `FitContext` makes the result of them; an end of an interval
that reaches a bound of the search is open there: the bound was set before any data were seen.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ptq_eval.errors import OptionError
from ptq_eval.laws.base import (
    Coverage,
    Data,
    Estimate,
    FitKind,
    FitResult,
    FitStatus,
    Law,
    Method,
    Noise,
    Parameter,
)
from ptq_eval.laws.findings import Finding
from ptq_eval.laws.fit import bootstrap, profile
from ptq_eval.laws.fit.diagnostics import (
    aicc,
    blind_direction,
    by_bits,
    free,
    leverage,
    r2,
    r2_weighted,
    scatter_of,
    tau_of,
)
from ptq_eval.laws.fit.losses import DEFAULT_DELTA, Loss, make_loss
from ptq_eval.laws.fit.requirements import clean, confounded, few_sizes, trade_off
from ptq_eval.laws.fit.restrict import restrict
from ptq_eval.laws.fit.search import minimise, polish, starts
from ptq_eval.laws.fit.solver import Minima, Problem, Solution, search_bounds, to_theta
from ptq_eval.laws.quality import Scatter

INTERVALS = ("bootstrap", "profile", "none")

_ROUNDS = 30


def fit(
    law: Law,
    data: Data,
    *,
    loss: Literal["huber", "squared", "lad", "log-huber", "log-squared", "log-lad", "least-squares"] = "huber",
    huber_delta: float | None = None,
    sigma: Any = None,
    fixed: Mapping[str, float] | None = None,
    tied: Iterable[tuple[str, str]] = (),
    bounds: Mapping[str, tuple[float, float]] | None = None,
    seed: int = 0,
    n_boot: int = 200,
    level: float = 0.9,
    intervals: Literal["bootstrap", "profile", "none"] = "bootstrap",
) -> FitResult:
    """Fit `law` to `data`, with intervals.

    data: the law's columns and response, each [n], and optionally "se", "run", "checkpoint" and "windows"
    [n, n_windows] (see `base.Data`).  Points with anything not finite, or with a variable that is not positive, are
    dropped and counted; so are responses that are not positive if the loss is logarithmic.

    loss: see `losses`.  `huber_delta` is Huber's threshold in units of sigma (1.345; 1e-3 for "log-huber").
    sigma: [n] or one number, the standard error of the response (of its logarithm for a logarithmic loss); replaces
    the weights that are otherwise estimated, or equal for a logarithmic loss and for plain least squares.
    fixed, tied, bounds: values of constants by name, pairs that are equal, bounds instead of the law's own.
    intervals: "bootstrap" over windows and runs (`n_boot` refits), "profile" likelihood, or "none".

    The result depends on arguments and seed only.  Bad data give a result whose status is "not_identified", with the
    reason; OptionError is for a wrong option, a column that is missing, or one that holds no numbers.
    """
    cost = make_loss(loss, huber_delta)
    if not 0 < level < 1 or n_boot < 0:
        raise OptionError("fit options out of range", got=f"{level=}, {n_boot=}")
    if intervals not in INTERVALS:
        raise OptionError("unknown kind of interval", got=repr(intervals), allowed=", ".join(INTERVALS))
    law = restrict(law, fixed, tied, bounds)
    data, kept, undefined = clean(law, data, sigma, cost)
    context = FitContext(law, data, kept, undefined, cost, seed, level)
    pair = confounded(law, data)
    if reason := trade_off(law, pair) if pair else law.objection(data):
        return context.not_identified(reason)
    solution = _solve(law, data, cost, np.random.default_rng(seed))
    z = cost.transform(data[law.response])
    if reason := blind_direction(solution.problem, solution.point, z):
        return context.not_identified(reason)
    if intervals == "profile":
        return context.finished(solution, solution.point[None][:0], profile.intervals(solution, z, level))
    draws = bootstrap.replicates(solution, seed=seed, n_boot=n_boot if intervals == "bootstrap" else 0)
    return context.finished(solution, draws)


def minimum(law: Law, data: Data, *, loss: str = "huber", huber_delta: float | None = None, seed: int = 0) -> Solution:
    """The minimum that `fit` finds, as a point with its problem: for refits of other responses."""
    cost = make_loss(loss, huber_delta)
    return _solve(law, clean(law, data, None, cost)[0], cost, np.random.default_rng(seed))


def _solve(law: Law, data: Data, loss: Loss, rng: np.random.Generator) -> Solution:
    """The minimum over all starts; weights without a sigma are iterated with the constants to a fixed point.

    Where the iteration has none, as where it alternates between two minima, that of all it passed counts which has the
    least Σ log σ + cost: the negative log likelihood.
    """
    y = data[law.response]
    z, ones = loss.transform(y), np.ones(len(y))
    if "sigma" in data or loss.unweighted:
        problem = Problem(law, data, data.get("sigma", ones), loss)
        return _finished(problem, z, minimise(problem, z, starts(problem, y, rng)), math.nan)
    tau, best, se = 0.3, np.full(len(law.parameters), np.nan), data["se"]
    scale = np.maximum(np.abs(y), 1e-3 * np.abs(y).max())
    problem = Problem(law, data, np.hypot(se, tau * scale), loss)
    points = starts(problem, y, rng)
    found, passed = minimise(problem, z, points), []
    for _ in range(_ROUNDS):
        before, best = (tau, best), found.points[found.lowest]
        passed.append((float(np.sum(np.log(problem.sigma)) + problem.values(best[None], z)[0]), problem, found, tau))
        f = law.predict(to_theta(law, best), data)
        scale = np.maximum(np.abs(f), 1e-9 * np.abs(y).max())
        tau = tau_of(law.min_scatter, y - f, se, scale, loss.k or DEFAULT_DELTA["huber"], len(y) - law.n_free)
        if abs(tau - before[0]) < 1e-6 * tau and np.allclose(best, before[1], rtol=1e-7, atol=1e-9):
            return _finished(problem, z, found, tau)
        problem = replace(problem, sigma=np.hypot(se, tau * scale))
        found = minimise(problem, z, found.points)
    _, problem, found, tau = min(passed[1:], key=lambda each: each[0])
    return _finished(problem, z, found, tau)


def _finished(problem: Problem, z: np.ndarray, found: Minima, tau: float) -> Solution:
    """The lowest minimum, made exact where the loss has corners."""
    point = found.points[found.lowest]
    if problem.loss.k == 0:
        point = polish(problem, z, point)
    return Solution(point, float(problem.values(point[None], z)[0]), problem, tau, bool(found.converged[found.lowest]))


@dataclass(frozen=True)
class FitContext:
    """Everything about a fit that is known before it is done; `data` is clean, `kept` [all rows] says which rows it
    holds, `undefined` how many of the others have no logarithm; `law` may be a restricted one."""

    law: Law
    data: Data
    kept: np.ndarray
    undefined: int
    loss: Loss
    seed: int
    level: float

    def not_identified(self, reason: Finding) -> FitResult:
        """A result without constants, with the reason."""
        nothing = {name: Estimate(math.nan) for name in self._complete({p.name: math.nan for p in self.law.parameters})}
        return self._result(estimates=nothing, status=FitStatus.not_identified(reason))

    def finished(self, solution: Solution, replicates: np.ndarray, profile: np.ndarray | None = None) -> FitResult:
        """The result for a minimum and its replicates [n_boot, p] or profile intervals [p, 2], all in search
        coordinates."""
        law, problem, y = self.law, solution.problem, self.data[self.law.response]
        theta = {name: float(value[0]) for name, value in to_theta(law, solution.point).items()}
        natural = {name: value[:, 0] for name, value in to_theta(law, replicates).items()}
        stuck = ~free(problem, solution.point)
        at_bound = tuple(p.name for p, at in zip(law.parameters, stuck) if at and not p.fixed)
        f, z = law.predict(theta, self.data), self.loss.transform(y)
        both = (y > 0) & (f > 0)
        ends = self._bootstrapped(theta, natural) if profile is None else self._profiled(profile)
        known = {name: Estimate(value, *ends[name]) for name, value in theta.items()}
        for p, at in zip(law.parameters, stuck):
            if at:  # replicates at a bound have no spread, which is no measure of uncertainty
                known[p.name] = Estimate(theta[p.name])
        without = few_sizes(law, self.data)
        known |= {name: Estimate(theta[name]) for name in without}
        everything = self._complete(known)
        draws = {**{name: np.full(len(replicates), value) for name, value in self._restricted().items()}, **natural}
        kind = FitKind.AT_BOUND if at_bound else FitKind.OK
        n_free = int(np.sum(~stuck))
        scatter, unit = (solution.tau, Scatter.WEIGHTS)
        if math.isnan(solution.tau):
            scatter, unit = scatter_of(problem, f, n_free)
        return self._result(
            estimates={name: v if isinstance(v, Estimate) else Estimate(v) for name, v in everything.items()},
            status=FitStatus(kind if solution.converged else FitKind.NOT_CONVERGED, at_bound),
            objective=solution.objective,
            scatter=scatter,
            scatter_kind=unit,
            least_scatter=bool(unit is not Scatter.RESPONSE and scatter <= law.min_scatter),
            r2=r2(y, f),
            r2_log=r2(np.log(y[both]), np.log(f[both])),
            r2_weighted=r2_weighted(z, self.loss.transform(f), problem.sigma),
            by_bits=by_bits(problem, f, n_free, estimated=not math.isnan(solution.tau)),
            no_interval=without,
            aicc=aicc(problem, solution.objective, y, n_free),
            residuals=self._in_rows(problem.residuals(solution.point[None], z)[0]),
            leverage=self._in_rows(leverage(problem, solution.point, z)),
            n_boot=len(replicates),
            covers=self._covers(len(replicates), profile is not None),
            stretch=self._stretch(),
            replicates=np.column_stack(list(self._complete(draws).values())),
        )

    def _bootstrapped(self, theta: Mapping[str, float], draws: Mapping[str, np.ndarray]) -> dict[str, Any]:
        ends = {}
        for p in self.law.parameters:
            value, options = theta[p.name], {"factor": self._stretch(), "level": self.level, "log": p.log}
            pair = bootstrap.interval(value, draws[p.name], **options)
            ends[p.name] = opened(p, *pair)
        return ends

    def _profiled(self, profile: np.ndarray) -> dict[str, Any]:
        lows, highs = search_bounds(self.law)
        ends = {}
        for p, (low, high), lowest, highest in zip(self.law.parameters, profile, lows, highs):
            low, high = -math.inf if low <= lowest else low, math.inf if high >= highest else high
            ends[p.name] = tuple(
                float(np.exp(end)) if p.log and np.isfinite(end) else float(end) for end in (low, high)
            )
        return ends

    def _complete(self, theta: Mapping[str, Any]) -> dict[str, Any]:
        return self.law.complete(theta)

    def _restricted(self) -> dict[str, float]:
        """The constants that a restricted law fixes, by name."""
        marks = self._complete({p.name: math.nan for p in self.law.parameters})
        return {name: value for name, value in marks.items() if not math.isnan(value)}

    def _in_rows(self, values: np.ndarray) -> np.ndarray:
        rows = np.full(len(self.kept), np.nan)
        rows[self.kept] = values
        return rows

    def _stretch(self) -> float:
        return bootstrap.stretch(len(set(self._clusters())), self.level)

    def _result(self, **known: Any) -> FitResult:
        blank = {"objective": math.nan, "scatter": math.nan, "r2": math.nan, "r2_log": math.nan, "n_boot": 0}
        same = {
            "law": self.law.name,
            "equation": self.law.equation,
            "source": self.law.source,
            "response": self.law.response,
            "loss": self.loss.name,
            "huber_delta": self.loss.k,
            "n_points": len(self.data[self.law.response]),
            "n_dropped": int(np.sum(~self.kept)),
            "n_runs": len(set(self.data["run"].tolist())),
            "seed": self.seed,
            "digest": digest(self.law, self.data),
            "level": self.level,
            "n_undefined": self.undefined,
            "fixed": {p.name: p.low for p in self.law.parameters if p.fixed},
            "covers": Coverage(self.level),
        }
        values: dict[str, Any] = {**blank, **same, **known}
        return FitResult(**values)

    def _clusters(self) -> list[Any]:
        return bootstrap.clusters(self.data["run"].tolist(), self.data["checkpoint"].tolist())

    def _covers(self, n_boot: int, profile: bool) -> Coverage:
        runs, clusters = len(set(self.data["run"].tolist())), len(set(self._clusters()))
        if profile:
            return Coverage(self.level, Method.PROFILE, runs)
        if not n_boot:
            return Coverage(self.level)
        noise, windows = Noise.NONE, 0
        if bootstrap.has_windows(self.data):
            noise, windows = Noise.WINDOWS, self.data["windows"].shape[1]
        elif np.any(self.data["se"] > 0):
            noise = Noise.STANDARD_ERRORS
        return Coverage(self.level, Method.BOOTSTRAP, runs, clusters, runs >= bootstrap.MIN_RUNS, noise, windows)


def opened(p: Parameter, low: float, high: float) -> tuple[float, float]:
    """The ends of an interval of `p`, infinite where they reach a bound of its search."""
    return -math.inf if low <= p.low else low, math.inf if high >= p.high else high


def digest(law: Law, data: Data) -> str:
    """The first 16 hexadecimal digits of SHA-256 over the columns that the fit of `law` reads."""
    sha = hashlib.sha256()
    categories = {name for name in data if name.startswith("category of ")}
    for name in sorted(
        {*categories, *law.columns, law.response, "se", "sigma", "windows", "run", "checkpoint"} & set(data)
    ):
        values = data[name]
        numeric = values.dtype.kind in "iuf"
        sha.update(name.encode() + (values.astype("<f8").tobytes() if numeric else repr(values.tolist()).encode()))
    return sha.hexdigest()[:16]
