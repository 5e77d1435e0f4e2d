"""From a minimum and its replicates to a `FitResult`: intervals, goodness of fit, status, and words."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptq_eval.laws import bootstrap
from ptq_eval.laws.base import Data, Estimate, FitResult, Law
from ptq_eval.laws.solver import Solution, search_bounds, to_theta


@dataclass(frozen=True)
class Frame:
    """Everything about a fit that is known before it is done; `data` is clean and `k` is Huber's
    threshold."""

    law: Law
    data: Data
    n_dropped: int
    loss: str
    k: float
    seed: int
    level: float

    def not_identified(self, why: str) -> FitResult:
        """A result without constants, which says why."""
        nothing = {p.name: Estimate(math.nan) for p in self.law.parameters}
        return self._result(estimates=nothing, status=f"not_identified: {why}", message=f"no fit: {why}")

    def finished(self, solution: Solution, replicates: np.ndarray) -> FitResult:
        """The result for a minimum and its replicates [n_boot, p], both in search coordinates."""
        law, y = self.law, self.data[self.law.response]
        theta = {name: float(value[0]) for name, value in to_theta(law, solution.point).items()}
        factor = bootstrap.stretch(len(set(self._clusters())), self.level)
        natural = np.column_stack([value[:, 0] for value in to_theta(law, replicates).values()])
        low, high = search_bounds(law)
        stuck = (solution.point <= low) | (solution.point >= high)
        estimates = {p.name: Estimate(theta[p.name]) for p in law.parameters}
        for p, draws, at in zip(law.parameters, natural.T, stuck):
            if at:  # replicates held at a bound say nothing about how sure it is
                continue
            ends = bootstrap.interval(theta[p.name], draws, factor=factor, level=self.level, log=p.log)
            estimates[p.name] = Estimate(theta[p.name], *(float(np.clip(end, p.low, p.high)) for end in ends))
        names = ", ".join(p.name for p, at in zip(law.parameters, stuck) if at and not p.given)
        f = law.predict(theta, self.data)
        both = (y > 0) & (f > 0)
        return self._result(
            estimates=estimates,
            status=f"at_bound: {names}" if names else "ok",
            message=self._message(solution.tau, names),
            objective=solution.objective,
            scatter=solution.tau,
            r2=_r2(y, f),
            r2_log=_r2(np.log(y[both]), np.log(f[both])),
            n_boot=len(replicates),
            interval_covers=self._covers(),
            stretch=factor,
            replicates=natural,
        )

    def _result(self, **known: Any) -> FitResult:
        blank = {"objective": math.nan, "scatter": math.nan, "r2": math.nan, "r2_log": math.nan, "n_boot": 0}
        same = {
            "law": self.law.name,
            "equation": self.law.equation,
            "source": self.law.source,
            "loss": self.loss,
            "huber_delta": self.k,
            "n_points": len(self.data[self.law.response]),
            "n_dropped": self.n_dropped,
            "n_runs": len(set(self.data["run"].tolist())),
            "seed": self.seed,
            "digest": digest(self.law, self.data),
            "level": self.level,
            "interval_covers": "no interval",
        }
        return FitResult(**{**blank, **same, **known})

    def _clusters(self) -> list[Any]:
        return bootstrap.clusters(self.data["run"].tolist(), self.data["checkpoint"].tolist())

    def _message(self, tau: float, at_bound: str) -> str:
        text = f"{len(self.data[self.law.response])} points"
        if math.isfinite(tau):
            floor = " (the least assumed)" if tau <= self.law.min_scatter else ""
            text += f", scattering {100 * tau:.2g} % about the law beyond evaluation noise{floor}"
        for p in self.law.parameters:
            if p.given:
                text += f"; one bit-width: {p.name} is set to {p.low:g} and not fitted, "
                text += f"{self.law.parameters[0].name} holds only together with it and for these --bits"
        return text + (f"; at its bound: {at_bound}" if at_bound else "")

    def _covers(self) -> str:
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


def _r2(y: np.ndarray, f: np.ndarray) -> float:
    """1 − Σ(y − f)²/Σ(y − mean)²; NaN where y does not vary."""
    total = float(np.sum(np.square(y - y.mean()))) if len(y) else 0.0
    return 1 - float(np.sum(np.square(y - f))) / total if total > 0 else math.nan
