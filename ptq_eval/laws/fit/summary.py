"""From a minimum and its replicates to a `FitResult`: intervals, goodness of fit, status, and words."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptq_eval.laws.base import Data, Estimate, FitResult, Law
from ptq_eval.laws.fit import bootstrap
from ptq_eval.laws.fit.diagnostics import aicc, free, leverage, r2
from ptq_eval.laws.fit.losses import Loss
from ptq_eval.laws.fit.solver import Solution, to_theta


@dataclass(frozen=True)
class Frame:
    """Everything about a fit that is known before it is done; `data` is clean, `kept` [rows given] says which
    rows it holds, `undefined` how many of the others have no logarithm; `law` may be a restricted one."""

    law: Law
    data: Data
    kept: np.ndarray
    undefined: int
    loss: Loss
    seed: int
    level: float

    def not_identified(self, why: str) -> FitResult:
        """A result without constants, which says why."""
        nothing = {name: Estimate(math.nan) for name in self._complete({p.name: math.nan for p in self.law.parameters})}
        return self._result(estimates=nothing, status=f"not_identified: {why}", message=f"no fit: {why}")

    def finished(self, solution: Solution, replicates: np.ndarray, profile: np.ndarray | None = None) -> FitResult:
        """The result for a minimum and its replicates [n_boot, p] or profile intervals [p, 2], all in search
        coordinates."""
        law, problem, y = self.law, solution.problem, self.data[self.law.response]
        theta = {name: float(value[0]) for name, value in to_theta(law, solution.point).items()}
        natural = {name: value[:, 0] for name, value in to_theta(law, replicates).items()}
        stuck = ~free(problem, solution.point)
        names = ", ".join(p.name for p, at in zip(law.parameters, stuck) if at and not p.given)
        f, z = law.predict(theta, self.data), self.loss.transform(y)
        both = (y > 0) & (f > 0)
        ends = self._bootstrapped(theta, natural) if profile is None else self._profiled(profile)
        known = {name: Estimate(value, *ends[name]) for name, value in theta.items()}
        for p, at in zip(law.parameters, stuck):
            if at:  # replicates held at a bound say nothing about how sure it is
                known[p.name] = Estimate(theta[p.name])
        everything = self._complete(known)
        draws = {**{name: np.full(len(replicates), value) for name, value in self._given().items()}, **natural}
        status = f"at_bound: {names}" if names else "ok"
        return self._result(
            estimates={name: v if isinstance(v, Estimate) else Estimate(v) for name, v in everything.items()},
            status=status if solution.converged else "not_converged",
            message=self._message(solution, names),
            objective=solution.objective,
            scatter=solution.tau,
            r2=r2(y, f),
            r2_log=r2(np.log(y[both]), np.log(f[both])),
            aicc=aicc(problem, solution.objective, y, int(np.sum(~stuck))),
            residuals=self._in_rows(problem.residuals(solution.point[None], z)[0]),
            leverage=self._in_rows(leverage(problem, solution.point, z)),
            n_boot=len(replicates),
            interval_covers=self._covers(len(replicates)) if profile is None else self._profile_covers(),
            stretch=self._stretch(),
            replicates=np.column_stack(list(self._complete(draws).values())),
        )

    def _bootstrapped(self, theta: Mapping[str, float], draws: Mapping[str, np.ndarray]) -> dict[str, Any]:
        ends = {}
        for p in self.law.parameters:
            value, options = theta[p.name], {"factor": self._stretch(), "level": self.level, "log": p.log}
            pair = bootstrap.interval(value, draws[p.name], **options)
            ends[p.name] = tuple(float(np.clip(end, p.low, p.high)) for end in pair)
        return ends

    def _profiled(self, profile: np.ndarray) -> dict[str, Any]:
        natural = [np.exp(ends) if p.log else ends for p, ends in zip(self.law.parameters, profile)]
        return {p.name: tuple(ends.tolist()) for p, ends in zip(self.law.parameters, natural)}

    def _complete(self, theta: Mapping[str, Any]) -> dict[str, Any]:
        return self.law.complete(theta)

    def _given(self) -> dict[str, float]:
        """What a restricted law was given, by name of the constant."""
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
            "interval_covers": "no interval",
        }
        return FitResult(**{**blank, **same, **known})

    def _clusters(self) -> list[Any]:
        return bootstrap.clusters(self.data["run"].tolist(), self.data["checkpoint"].tolist())

    def _message(self, solution: Solution, at_bound: str) -> str:
        tau, text = solution.tau, f"{len(self.data[self.law.response])} points"
        if math.isfinite(tau):
            floor = " (the least assumed)" if tau <= self.law.min_scatter else ""
            text += f", scattering {100 * tau:.2g} % about the law beyond evaluation noise{floor}"
        for p in self.law.parameters:
            if p.given:
                text += f"; one bit-width: {p.name} is set to {p.low:g} and not fitted, "
                text += f"{self.law.parameters[0].name} holds only together with it and for these bits"
        if self.undefined:
            text += f"; {self.undefined} values of {self.law.response} are not positive and have no logarithm: dropped"
        if not solution.converged:
            text += "; the search did not come to its end, the constants are the best seen"
        return text + (f"; at its bound: {at_bound}" if at_bound else "")

    def _profile_covers(self) -> str:
        percent = f"{100 * self.level:g} % interval"
        return f"{percent} by profile likelihood; takes points as independent, differences between runs are not covered"

    def _covers(self, n_boot: int) -> str:
        if not n_boot:
            return "no interval"
        n_runs, n_clusters = len(set(self.data["run"].tolist())), len(set(self._clusters()))
        noise = "no evaluation noise (no standard errors are known)"
        if bootstrap.has_windows(self.data):
            noise = f"the choice of {self.data['windows'].shape[1]} evaluation windows"
        elif np.any(self.data["se"] > 0):
            noise = "evaluation noise, as independent errors of the size of the standard errors"
        percent = f"{100 * self.level:g} % interval"
        if n_runs >= bootstrap.MIN_RUNS:
            return f"{percent} over {n_runs} runs; covers {noise} and differences between runs"
        missing = "another training run (seed, data order): at least 3 runs are needed for that"
        scatter = f"the scatter of {n_clusters} checkpoints about the law"
        return f"{percent} from {n_runs} run{'s' * (n_runs != 1)}; covers {noise} and {scatter}; not {missing}"


def digest(law: Law, data: Data) -> str:
    """The first 16 hexadecimal digits of SHA-256 over the columns that the fit of `law` reads."""
    sha = hashlib.sha256()
    for name in sorted({*law.columns, law.response, "se", "sigma", "windows", "run", "checkpoint"} & set(data)):
        values = data[name]
        numeric = values.dtype.kind in "iuf"
        sha.update(name.encode() + (values.astype("<f8").tobytes() if numeric else repr(values.tolist()).encode()))
    return sha.hexdigest()[:16]
