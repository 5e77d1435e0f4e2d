"""Training and serving precision in one law: equations 9 and 11 of Kumar et al.

    delta = C_T·e^{−P/gamma_post} · D^gamma_D / N_eff^gamma_N · Π_x [1 − e^{−C_x·(P_x − P)}]                (eq. 9)
    L     = E + A/N_eff^alpha + B/D^beta + delta                                                            (eq. 11)

(arXiv 2411.04330.)  P is the precision of the weights when the model is served, P_x that in which part x was trained.
Two things happen to a model that was trained in low precision.  It has fewer effective parameters, hence a larger
delta.  And it has been made robust by training: the factors in brackets are below one, and zero where a part is
served in the precision it was trained in.  Where P exceeds P_x they are clipped at zero.

The paper does not report C_w, C_a and C_kv.  An infinite C_x is allowed and means no robustness at all, which
makes delta an upper bound.  A model that was trained at full precision has factors near one: that is equation 2.

The response of `UnifiedDelta` is the loss added by quantization; `Unified` gives the loss after it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ptq_eval.laws.base import Data, Law, Parameter, Theta
from ptq_eval.laws.fit.losses import make_loss
from ptq_eval.laws.fit.solver import Problem, minimise, to_search, to_theta
from ptq_eval.laws.formulas.chinchilla import Growing
from ptq_eval.laws.formulas.kumar import KumarPTQ
from ptq_eval.laws.formulas.n_eff import PARTS, Capacity, NEff

_N_STARTS, _N_STAGED, _N_KEPT = 12, 4, 3
_MIN_SHARE = 1e-6
_DELTA = "delta = C_T * exp(-P / gamma_post) * D^gamma_D / N_eff^gamma_N * prod over x of (1 - exp(-C_x * (P_x - P)))"


def robustness(C: Any, P_x: Any, P: Any) -> Any:
    """What training at P_x bits leaves of the damage of serving at P: max(0, 1 − exp(−C·(P_x − P)))."""
    gap = np.asarray(P_x, float) - P
    left = gap > 0
    return np.where(left, -np.expm1(-C * np.where(left, gap, 1.0)), 0.0)


class UnifiedDelta(Growing):
    """delta of eq. 9; Kumar et al., arXiv 2411.04330.  Columns N, D, P, and P_w, P_a, P_kv of the `parts`."""

    name = "unified_delta"
    equation = f"{_DELTA},  {Capacity.equation}"
    source = "Kumar et al. 2024, arXiv 2411.04330, eq. 9"
    response: ClassVar[str] = "delta"
    min_scatter: ClassVar[float] = 0.01
    linear = ("C_T",)

    def __init__(self, parts: Sequence[str] = tuple(PARTS), *, offsets: bool = True, tied: bool = False) -> None:
        """`parts` of weights, activations, kv; `offsets` n on or off; `tied`: one gamma and n for all parts."""
        self.capacity = Capacity(tuple(parts), offsets, tied)
        self._factors = tuple((f"C_{PARTS[part]}", f"P_{PARTS[part]}") for part in self.capacity.parts)
        robust = tuple(Parameter(C, 1e-3, 1e3, "per bit", log=True) for C, _ in self._factors)
        self.columns = (*KumarPTQ.columns, *self.capacity.columns)
        self.parameters = (*KumarPTQ.parameters, *robust, *self.capacity.parameters)
        self.needs: Mapping[str, int] = {**KumarPTQ.needs, **dict.fromkeys(self.capacity.columns, 2)}

    def predict(self, theta: Theta, data: Data) -> np.ndarray:
        """Delta in nats per token; beyond all bounds where a training precision leaves no effective parameters."""
        with np.errstate(divide="ignore"):
            delta = KumarPTQ().predict(theta, {**data, "N": self.capacity.n_eff(theta, data)})
        return delta * self._left(theta, data)

    def gradient(self, theta: Theta, data: Data) -> dict[str, np.ndarray]:
        """Exact derivatives; zero where delta is clipped at zero."""
        return self.linearise(theta, data)[1]

    def linearise(self, theta: Theta, data: Data) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Every derivative is a multiple of the prediction."""
        delta, by = self.predict(theta, data), {}
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            by["C_T"] = 1 / theta["C_T"]
            by["gamma_D"] = np.log(data["D"])
            by["gamma_N"] = -np.log(self.capacity.n_eff(theta, data))
            by["gamma_post"] = data["P"] / np.square(theta["gamma_post"])
            for C, P_x in self._factors:
                gap = np.maximum(data[P_x] - data["P"], 1e-300)
                by[C] = gap / np.expm1(theta[C] * gap)
            for name, derivative in self.capacity.log_gradient(theta, data).items():
                by[name] = -theta["gamma_N"] * derivative
            return delta, {name: np.where(delta > 0, delta * value, 0.0) for name, value in by.items()}

    def starts(self, data: Data, rng: np.random.Generator) -> list[dict[str, float]]:
        """Equation 2 on the same points, with guesses of what the training precision does."""
        lowest, found = self.capacity.lowest(data), []
        for theta in KumarPTQ().starts(data, rng)[:_N_STARTS]:
            robust = {C: float(np.exp(rng.uniform(-2.5, 1.0))) for C, _ in self._factors}
            guess = {**theta, **robust, **self.capacity.guess(lowest, rng)}
            left, f = self._left(guess, data), self.capacity.factor(guess, data)
            seen = (left > 0) & (data["delta"] > 0)
            scale = np.log(left[seen]) - theta["gamma_N"] * np.log(f[seen])
            guess["C_T"] *= float(np.exp(-np.mean(scale))) if seen.any() else 1.0
            found.append(guess)
        return found

    def _left(self, theta: Theta, data: Data) -> Any:
        factors = [robustness(theta[C], data[P_x], data["P"]) for C, P_x in self._factors]
        return np.prod(np.broadcast_arrays(*factors), axis=0)


class Unified(Law):
    """L after quantization, eq. 11; Kumar et al., arXiv 2411.04330.  Columns as of `UnifiedDelta`."""

    name = "unified"
    equation = f"L = E + A / N_eff^alpha + B / D^beta + delta,  {_DELTA},  {Capacity.equation}"
    source = "Kumar et al. 2024, arXiv 2411.04330, eq. 11"
    response: ClassVar[str] = "loss"
    min_scatter: ClassVar[float] = 1e-4
    linear = (*NEff.linear, *UnifiedDelta.linear)

    def __init__(self, parts: Sequence[str] = tuple(PARTS), *, offsets: bool = True, tied: bool = False) -> None:
        """`parts` of weights, activations, kv; `offsets` n on or off; `tied`: one gamma and n for all parts."""
        self.before = NEff(parts, offsets=offsets, tied=tied)
        self.added = UnifiedDelta(parts, offsets=offsets, tied=tied)
        known = {p.name for p in self.added.parameters}
        self.columns = self.added.columns
        self.parameters = (*(p for p in self.before.parameters if p.name not in known), *self.added.parameters)
        self.needs: Mapping[str, int] = {**self.added.needs, **self.before.needs}

    def variables(self, data: Data) -> dict[str, np.ndarray]:
        """Those of the two parts of the law."""
        return {**self.added.variables(data), **self.before.variables(data)}

    def predict(self, theta: Theta, data: Data) -> np.ndarray:
        """Loss after quantization, in nats per token."""
        return self.before.predict(theta, data) + self.added.predict(theta, data)

    def gradient(self, theta: Theta, data: Data) -> dict[str, np.ndarray]:
        """Exact derivatives: the sums of both parts' derivatives."""
        return self.linearise(theta, data)[1]

    def linearise(self, theta: Theta, data: Data) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Sums of the two parts."""
        before, by = self.before.linearise(theta, data)
        added, more = self.added.linearise(theta, data)
        return before + added, by | {name: by.get(name, 0.0) + value for name, value in more.items()}

    def starts(self, data: Data, rng: np.random.Generator) -> list[dict[str, float]]:
        """In stages, by least squares: the loss law on the quarter of the points served at the highest precision; delta
        on what the others have more, with the loss law's effective parameters; then both are searched for together."""
        best = data["P"] >= np.quantile(data["P"], 0.75)
        high = {name: column[best] for name, column in data.items()}
        capacity = {p.name for p in self.before.capacity.parameters}
        found = []
        guesses = self.before.starts_above(self.before.capacity.lowest(data), high, rng)
        # A law of the high points may leave no parameters to points trained at a lower precision; a guess does.
        laws = [*_least_squares(self.before, high, guesses), *guesses]
        usable = [theta for theta in laws if np.all(np.isfinite(self.before.predict(theta, data)))]
        for theta in usable[:_N_STAGED]:
            more = data["loss"] - self.before.predict(theta, data)
            visible = {**data, "delta": np.maximum(more, _MIN_SHARE * data["loss"]), "se": 0 * more}
            guesses = [
                {**guess, **{name: theta[name] for name in capacity}} for guess in self.added.starts(visible, rng)
            ]
            added = _least_squares(self.added, {**data, "delta": more}, guesses, hold=capacity)
            found += [{**guess, **theta} for guess in added[:_N_KEPT]]
        return found

    def critical_tokens(self, theta: Theta, loss: Theta, data: Data) -> Any:
        """As `UnifiedDelta.critical_tokens`."""
        return self.added.critical_tokens(theta, loss, data)


def _least_squares(
    law: Law, data: Data, guesses: Sequence[Theta], hold: Collection[str] = ()
) -> list[dict[str, float]]:
    """The minima from each of the guesses, the lowest first; constants in `hold` stay as guessed."""
    problem = Problem(law, data, np.ones(len(data["N"])), make_loss("squared"))
    start = np.array([to_search(law, guess) for guess in guesses])
    held = np.broadcast_to([p.name in hold for p in law.parameters], start.shape)
    found = minimise(problem, data[law.response], start, held)
    lowest = found.points[np.argsort(found.values, kind="stable")]
    return [{name: float(value[0]) for name, value in to_theta(law, point).items()} for point in lowest]
