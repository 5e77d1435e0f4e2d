"""From a minimum and its replicates to a `FitResult`: intervals, goodness of fit, status, coverage.

An end of an interval that reaches a bound of the search is open: the bound was set before any data were seen.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptq_eval.laws.base import Coverage, Data, Estimate, FitKind, FitResult, FitStatus, Law, Method, Noise, Parameter
from ptq_eval.laws.findings import Finding
from ptq_eval.laws.fit import bootstrap
from ptq_eval.laws.fit.diagnostics import aicc, free, leverage, r2
from ptq_eval.laws.fit.losses import Loss
from ptq_eval.laws.fit.solver import Solution, search_bounds, to_theta


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
        everything = self._complete(known)
        draws = {**{name: np.full(len(replicates), value) for name, value in self._restricted().items()}, **natural}
        kind = FitKind.AT_BOUND if at_bound else FitKind.OK
        return self._result(
            estimates={name: v if isinstance(v, Estimate) else Estimate(v) for name, v in everything.items()},
            status=FitStatus(kind if solution.converged else FitKind.NOT_CONVERGED, at_bound),
            objective=solution.objective,
            scatter=solution.tau,
            least_scatter=bool(solution.tau <= law.min_scatter),
            r2=r2(y, f),
            r2_log=r2(np.log(y[both]), np.log(f[both])),
            aicc=aicc(problem, solution.objective, y, int(np.sum(~stuck))),
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
        return FitResult(**{**blank, **same, **known})

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
    for name in sorted({*law.columns, law.response, "se", "sigma", "windows", "run", "checkpoint"} & set(data)):
        values = data[name]
        numeric = values.dtype.kind in "iuf"
        sha.update(name.encode() + (values.astype("<f8").tobytes() if numeric else repr(values.tolist()).encode()))
    return sha.hexdigest()[:16]
