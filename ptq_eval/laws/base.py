"""What a scaling law is, and what a fit of one must say.

A law is a formula with named constants: it predicts one response ("delta", the loss added by quantization, or
"loss", both in nats per token) from some variables (N parameters, D tokens, P bits).  `predict` takes plain
numbers or arrays that broadcast against the data, so that the same formula serves one fit and a few hundred
bootstrap replicates at once.  One law per file; a law holds no data and fits nothing.

`linear` names the constants in which the prediction is linear once the others are given; the search for a start
solves for them exactly (variable projection).

A constant marked `log` is searched for, and gets its interval, on a logarithmic scale: a positive factor such
as C_T ranges over many powers of ten.  Whether data can tell a law's constants apart is partly known before
any fit: `needs` says how many distinct values of each variable the formula requires, and `objection`
whatever else speaks against a fit.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ptq_eval.results.points import SAME_SIZE

Data = Mapping[str, np.ndarray]
"""Columns by name, each [n]: a law's variables and response, optionally "se" (standard error of the
response), "run" and "checkpoint" (labels), and "windows" [n, n_windows], the response per evaluation
window."""

Theta = Mapping[str, Any]
"""Constants by name: floats, or arrays [replicates, 1]."""


@dataclass(frozen=True)
class Parameter:
    """One constant of a law: its name, bounds and unit, and whether it lives on a logarithmic scale."""

    name: str
    low: float
    high: float
    unit: str = ""
    log: bool = False

    @property
    def given(self) -> bool:
        """Whether the bounds leave nothing to fit."""
        return self.low == self.high


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; NaN where nothing could be estimated, infinite where an end is open."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def to_dict(self) -> dict[str, float | None]:
        """A JSON object; what is not finite becomes None."""
        return {name: finite_or_none(getattr(self, name)) for name in ("value", "low", "high")}


class Law(ABC):
    """A formula with named constants.  Subclasses fill in the class attributes and the abstract methods."""

    name: ClassVar[str]
    equation: ClassVar[str]
    source: ClassVar[str]
    response: ClassVar[str]
    columns: tuple[str, ...]
    """The variables that `predict` reads, all positive but those `from_zero`."""
    parameters: tuple[Parameter, ...]
    min_scatter: ClassVar[float]
    """The least relative deviation from the law that is believed possible."""
    needs: Mapping[str, int]
    """How many distinct values (more than 5 % apart) of each variable a fit needs at least."""
    linear: ClassVar[tuple[str, ...]] = ()
    """The constants in which `predict` is linear once the others are given."""
    from_zero: ClassVar[tuple[str, ...]] = ()
    """The variables that may be zero."""
    undetermined: ClassVar[str] = "the constants trade off against each other exactly on these points"
    """What to say of points that meet `needs` and still do not tell the constants apart."""

    @abstractmethod
    def predict(self, theta: Theta, data: Data) -> np.ndarray:
        """The response, [n] or, for constants of shape [replicates, 1], [replicates, n]; nats per token."""

    @abstractmethod
    def gradient(self, theta: Theta, data: Data) -> dict[str, np.ndarray]:
        """The derivative of `predict` by each constant, each of the shape of the prediction."""

    @abstractmethod
    def starts(self, data: Data, rng: np.random.Generator) -> list[dict[str, float]]:
        """Where to start the search, the best guess first; `data` holds finite points only."""

    def linearise(self, theta: Theta, data: Data) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """`predict` and `gradient` at once; a law whose two share their work overrides this."""
        return self.predict(theta, data), self.gradient(theta, data)

    def complete(self, theta: Theta) -> dict[str, Any]:
        """All constants of the formula by name, in its order, from those that are searched for."""
        return {p.name: theta[p.name] for p in self.parameters}

    @property
    def n_free(self) -> int:
        """How many constants a fit has to find."""
        return sum(not p.given for p in self.parameters)

    def variables(self, data: Data) -> dict[str, np.ndarray]:
        """The quantities whose distinct values `needs` counts, by name."""
        return {name: data[name] for name in self.needs}

    def objection(self, data: Data) -> str:
        """Why these points cannot identify the constants, as a sentence, or "" where nothing is known."""
        n, p = len(data[self.response]), self.n_free
        if n <= p:
            return f"{n} points for {p} constants leave nothing to judge the fit by"
        for name, values in self.variables(data).items():
            count = n_distinct(values)
            if count < self.needs.get(name, 0):
                values_of = f"value{'s' * (count != 1)} of {name}"
                return f"{count} distinct {values_of}, at least {self.needs[name]} needed"
        return ""


@dataclass(frozen=True)
class FitResult:
    """A law fitted to data, with everything needed to judge it.

    `objective` is the minimum of Σ rho(r), r being (y − f)/sigma or, for a logarithmic loss, (log y − log f)/sigma;
    `huber_delta` is where rho turns from ½r² to linear (infinite for squares, 0 for absolute values).
    `scatter` is tau in sigma² = se² + (tau·f)²: the relative deviation from the law beyond the evaluation noise, NaN
    where sigma was not estimated.  `r2` is taken in the response itself, `r2_log` in its logarithm over positive
    points.  `aicc` compares laws on the same points (see `diagnostics`).  `status` is "ok", "at_bound: names",
    "not_identified: why" or "not_converged".  `replicates` [n_boot, p] holds the bootstrap's constants in the law's
    order; two fits with one seed share their resamples, row by row.  `residuals` and `leverage` [rows of the
    data] are r and the diagonal of the hat matrix, NaN for rows that were dropped.
    """

    law: str
    equation: str
    source: str
    estimates: Mapping[str, Estimate]
    status: str
    message: str
    objective: float
    loss: str
    huber_delta: float
    scatter: float
    r2: float
    r2_log: float
    n_points: int
    n_dropped: int
    n_runs: int
    seed: int
    digest: str
    level: float
    n_boot: int
    interval_covers: str
    stretch: float = field(default=1.0, repr=False)
    replicates: np.ndarray = field(default_factory=lambda: np.empty((0, 0)), repr=False, compare=False)
    aicc: float = field(default=math.nan, compare=False)
    residuals: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)
    leverage: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)

    @property
    def identified(self) -> bool:
        """Whether the constants mean anything."""
        return not self.status.startswith("not_identified")

    @property
    def values(self) -> dict[str, float]:
        """The constants without their intervals."""
        return {name: estimate.value for name, estimate in self.estimates.items()}

    def to_dict(self) -> dict[str, Any]:
        """A JSON object, without the replicates; what is not finite becomes None."""
        plain = ("law", "equation", "source", "status", "message", "loss", "n_points", "n_dropped", "n_runs")
        plain += ("seed", "digest", "level", "n_boot")
        numbers = ("objective", "huber_delta", "scatter", "r2", "r2_log", "aicc", "stretch")
        return {
            **{name: getattr(self, name) for name in plain},
            **{name: finite_or_none(getattr(self, name)) for name in numbers},
            "parameters": {name: estimate.to_dict() for name, estimate in self.estimates.items()},
            "interval": self.interval_covers,
        }


def finite_or_none(value: float) -> float | None:
    """A float for JSON, which knows neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None


def n_distinct(values: Sequence[float] | np.ndarray, tolerance: float = SAME_SIZE) -> int:
    """How many values differ from the next smaller one that was counted by more than `tolerance` of it."""
    count, last = 0, -math.inf
    for value in np.unique(np.asarray(values, float)):
        if count == 0 or value - last > tolerance * abs(last):
            count, last = count + 1, value
    return count
