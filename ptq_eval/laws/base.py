"""What a scaling law is, and what a fit of one has to report.

A law is a formula with named constants: it predicts one response ("delta", the loss added by quantization, or
"loss", both in nats per token) from some variables (N parameters, D tokens, P bits).  `predict` takes plain
numbers or arrays that broadcast against the data, so that the same formula serves one fit and a few hundred
bootstrap replicates at once.  One law per file; a law holds no data and fits nothing.

`linear` names the constants in which the prediction is linear once the others are fixed; the search for a start
solves for them exactly (variable projection).

A constant marked `log` is searched for, and gets its interval, on a logarithmic scale: a positive factor such
as C_T ranges over many powers of ten.  Whether data can identify a law's constants is partly known before any
fit: `needs` counts the distinct values of each variable that the formula requires, and `objection` returns
any other reason against a fit.

Nothing here is prose: a result says how it ended (`FitStatus`) and what its intervals cover (`Coverage`) as values,
and `report/` makes the sentences.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

import numpy as np

from ptq_eval.laws.findings import Finding, Why, why, why_from
from ptq_eval.laws.quality import BitsQuality, Scatter, finite_or_none
from ptq_eval.results.points import SAME_SIZE

Data = Mapping[str, np.ndarray]
"""Columns by name, each [n]: a law's variables and response, optionally "se" (standard error of the
response), "run" and "checkpoint" (labels), "windows" [n, n_windows], the response per evaluation
window, and "design" [n], how each point's windows were drawn (`sampling.Design`, or None)."""

Theta = Mapping[str, Any]
"""Constants by name: floats, or arrays [replicates, 1]."""

_ENDS = ("value", "low", "high")


@dataclass(frozen=True)
class Parameter:
    """One constant of a law: its name, bounds and unit, and whether it is searched for on a logarithmic scale."""

    name: str
    low: float
    high: float
    unit: str = ""
    log: bool = False

    @property
    def fixed(self) -> bool:
        """Whether the bounds leave nothing to fit."""
        return self.low == self.high


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; NaN where nothing could be estimated, infinite where an end is open."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def open(self) -> tuple[str, ...]:
        """The ends ("low", "high") that are open: the data do not limit the value on that side."""
        return tuple(name for name in ("low", "high") if math.isinf(getattr(self, name)))

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; what is not finite becomes None, and "open" names the ends that are open, if any."""
        known: dict[str, Any] = {name: finite_or_none(getattr(self, name)) for name in _ENDS}
        return {**known, "open": list(self.open)} if self.open else known

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Estimate:
        """The inverse of `to_dict`; a single end that is null is open as well."""
        value, low, high = (math.nan if (v := stored.get(name)) is None else float(v) for name in _ENDS)
        opened = stored.get("open") or [end for end, other in (("low", high), ("high", low)) if math.isfinite(other)]
        low = -math.inf if math.isnan(low) and "low" in opened else low
        high = math.inf if math.isnan(high) and "high" in opened else high
        return cls(value, low, high)


class FitKind(StrEnum):
    """How a fit ended."""

    OK = "ok"
    AT_BOUND = "at_bound"
    NOT_IDENTIFIED = "not_identified"
    NOT_CONVERGED = "not_converged"


@dataclass(frozen=True)
class FitStatus:
    """How a fit ended: the constants at a bound of their search, and why there are none if not identified."""

    kind: FitKind = FitKind.OK
    at_bound: tuple[str, ...] = ()
    reason: Finding | None = None

    @classmethod
    def not_identified(cls, reason: Finding) -> FitStatus:
        """The status of a fit without constants."""
        return cls(FitKind.NOT_IDENTIFIED, reason=reason)

    def to_dict(self) -> dict[str, Any]:
        """The fields of `fit.json` that hold it."""
        reason = self.reason.to_dict() if self.reason else None
        return {"status_kind": self.kind.value, "at_bound": list(self.at_bound), "reason": reason}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> FitStatus:
        """The inverse of `to_dict`."""
        kind, names = FitKind(stored.get("status_kind", FitKind.OK)), stored.get("at_bound") or ()
        return cls(kind, tuple(names), why_from(stored.get("reason")))


class Method(StrEnum):
    """What intervals are made of."""

    BOOTSTRAP = "bootstrap"
    PROFILE = "profile"
    NONE = "none"


class Noise(StrEnum):
    """Which evaluation noise intervals cover."""

    WINDOWS = "windows"
    STANDARD_ERRORS = "standard_errors"
    NONE = "none"


@dataclass(frozen=True)
class Coverage:
    """What the intervals of a fit cover.

    `n_clusters` are the runs or, with fewer than three of them, the checkpoints that were resampled; differences
    between runs are covered in the first case only (`covers_runs`).  `n_windows`: evaluation windows behind the noise.
    """

    level: float
    method: Method = Method.NONE
    n_runs: int = 0
    n_clusters: int = 0
    covers_runs: bool = False
    noise: Noise = Noise.NONE
    n_windows: int = 0

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            **vars(self),
            "level": finite_or_none(self.level),
            "method": self.method.value,
            "noise": self.noise.value,
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Coverage:
        """The inverse of `to_dict`."""
        level = stored.get("level")
        known = {name: value for name, value in stored.items() if name not in ("level", "method", "noise")}
        kinds = {"method": Method(stored.get("method", Method.NONE)), "noise": Noise(stored.get("noise", Noise.NONE))}
        return cls(math.nan if level is None else float(level), **kinds, **known)


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
    """The smallest relative scatter about the law that a fit assumes."""
    needs: Mapping[str, int]
    """How many distinct values (more than 5 % apart) of each variable a fit needs at least."""
    linear: ClassVar[tuple[str, ...]] = ()
    """The constants in which `predict` is linear once the others are fixed."""
    absent: ClassVar[tuple[str, ...]] = ()
    """The factors that may be fixed at zero, which removes their term."""
    from_zero: ClassVar[tuple[str, ...]] = ()
    """The variables that may be zero."""
    signed: tuple[str, ...] = ()
    """The variables, and the response, that may have any sign and any unit."""
    one_value: ClassVar[tuple[str, ...]] = ()
    """The variables that may have a single value: their constant is then fixed and absorbed by another."""

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

    def held(self, data: Data) -> dict[str, tuple[float, Finding]]:
        """Constants that points with so few values cannot determine though they do the others: where to keep each, and
        why.  For a fit to somebody's table; the main job chooses another law instead."""
        return {}

    @property
    def n_free(self) -> int:
        """How many constants a fit has to find."""
        return sum(not p.fixed for p in self.parameters)

    def variables(self, data: Data) -> dict[str, np.ndarray]:
        """The quantities whose distinct values `needs` counts, by name."""
        return {name: data[name] for name in self.needs}

    def objection(self, data: Data) -> Finding | None:
        """Why these points cannot identify the constants; None if nothing is known against them."""
        n, p = len(data[self.response]), self.n_free
        if n <= p:
            return why(Why.TOO_FEW_POINTS, points=n, constants=p)
        for name, values in self.variables(data).items():
            count, needed = n_distinct(values), self.needs.get(name, 0)
            if count < needed:
                return why(Why.TOO_FEW_VALUES, variable=name, distinct=count, needed=needed)
        return None


@dataclass(frozen=True)
class FitResult:
    """A law fitted to data, with everything needed to judge it.

    `objective` is the minimum of Σ rho(r), r being (y − f)/sigma or, for a logarithmic loss, (log y − log f)/sigma;
    `huber_delta` is where rho turns from ½r² to linear (infinite for squares, 0 for absolute values).
    `scatter` is the deviation from the law beyond the evaluation noise, `scatter_kind` its unit: tau in
    sigma² = se² + (tau·f)² where points are weighted by it, the same without weights for a logarithmic loss, and the
    standard deviation of `response` for plain least squares.  `least_scatter`: whether it is the smallest that the law
    allows.  `r2` is taken
    in the response itself, `r2_log` in its logarithm over positive points, and `r2_weighted` in
    the scale of the loss with weights 1/sigma²; `by_bits` has the quality at each bit-width.  `no_interval` are the
    constants without an interval that a fit has otherwise, with the reason.  `aicc` compares laws on the same points
    (see `diagnostics`).  `n_dropped` rows could not be used; `n_undefined` of them only because their response has no
    logarithm.  `fixed` are the constants that the law itself keeps at a value (with one bit-width nothing
    determines gamma_post; the factor then holds only together with it).  `replicates` [n_boot, p] holds the
    bootstrap's constants in the law's order; two fits with one seed share their resamples, row by row.  `residuals`
    and `leverage` [rows of the data] are r and the diagonal of the hat matrix, NaN for rows that were dropped.
    """

    law: str
    equation: str
    source: str
    estimates: Mapping[str, Estimate]
    status: FitStatus
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
    covers: Coverage
    n_undefined: int = 0
    least_scatter: bool = False
    scatter_kind: Scatter = Scatter.WEIGHTS
    response: str = ""
    fixed: Mapping[str, float] = field(default_factory=dict)
    stretch: float = field(default=1.0, repr=False)
    replicates: np.ndarray = field(default_factory=lambda: np.empty((0, 0)), repr=False, compare=False)
    aicc: float = field(default=math.nan, compare=False)
    r2_weighted: float = field(default=math.nan, compare=False)
    by_bits: tuple[BitsQuality, ...] = field(default=(), compare=False)
    no_interval: Mapping[str, Finding] = field(default_factory=dict, compare=False)
    residuals: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)
    leverage: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)

    @property
    def identified(self) -> bool:
        """Whether there are constants."""
        return self.status.kind is not FitKind.NOT_IDENTIFIED

    @property
    def tau(self) -> float:
        """The relative scatter by which the points are weighted; NaN where they are weighted otherwise."""
        return self.scatter if self.scatter_kind is Scatter.WEIGHTS else math.nan

    @property
    def values(self) -> dict[str, float]:
        """The constants without their intervals."""
        return {name: estimate.value for name, estimate in self.estimates.items()}

    def to_dict(self) -> dict[str, Any]:
        """A JSON object of values, without the replicates; what is not finite becomes None."""
        plain = ("law", "equation", "source", "loss", "n_points", "n_dropped", "n_undefined", "n_runs")
        plain += ("seed", "digest", "level", "n_boot", "least_scatter", "response")
        numbers = ("objective", "huber_delta", "scatter", "r2", "r2_log", "r2_weighted", "aicc", "stretch")
        return {
            **{name: getattr(self, name) for name in plain},
            **self.status.to_dict(),
            **{name: finite_or_none(getattr(self, name)) for name in numbers},
            "scatter_kind": self.scatter_kind.value,
            "parameters": {name: estimate.to_dict() for name, estimate in self.estimates.items()},
            "fixed": dict(self.fixed),
            "by_bits": [one.to_dict() for one in self.by_bits],
            "no_interval": {name: reason.to_dict() for name, reason in self.no_interval.items()},
            "covers": self.covers.to_dict(),
        }


def n_distinct(values: Sequence[float] | np.ndarray, tolerance: float = SAME_SIZE) -> int:
    """How many values differ from the next smaller one that was counted by more than `tolerance` of it."""
    count, last = 0, -math.inf
    for value in np.unique(np.asarray(values, float)):
        if count == 0 or value - last > tolerance * abs(last):
            count, last = count + 1, value
    return count
