"""Degradation laws that are a product of powers: linear in the logarithms.

delta = factor · exp(Σ slope·column): equation 2 of Kumar et al., the laws of Ouyang et al. and of Chen et al.
differ only in the columns.  In logarithms the constants are solved exactly on the positive points.  That solution
only starts the search, for two reasons: points with delta ≤ 0 carry information and have no logarithm, and the
noise of delta is additive.

All of them grow as a power of D, and the loss before quantization falls as one, so each has the same closed form
for the number of tokens beyond which more data makes the quantized model worse (`Growing`).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np

from ptq_eval.laws.base import Data, Theta
from ptq_eval.laws.findings import Finding, Why, why
from ptq_eval.laws.formulas.chinchilla import Growing
from ptq_eval.sampling import errors_needed

N_STARTS = 24


class LogLinear(Growing):
    """The response is exp(log factor + Σ slope·column), the factor being the first of `parameters`."""

    response: ClassVar[str] = "delta"
    min_scatter: ClassVar[float] = 0.01

    @abstractmethod
    def _columns(self, data: Data) -> dict[str, np.ndarray]:
        """By name of its constant, in the order of `parameters`, the logarithm that it multiplies."""

    def _slope(self, name: str, value: Any) -> Any:
        """What a constant contributes to the exponent, per unit of its column."""
        return value

    def _slope_derivative(self, name: str, value: Any) -> Any:
        """The derivative of `_slope` by the constant."""
        return 1.0

    def _constant(self, name: str, slope: float) -> float:
        """The inverse of `_slope`, for starting values."""
        return slope

    @property
    def _factor(self) -> str:
        return self.parameters[0].name

    def predict(self, theta: Theta, data: Data) -> np.ndarray:
        """Delta in nats per token, for raw D and N and P in bits."""
        exponent = np.log(theta[self._factor])
        for name, column in self._columns(data).items():
            exponent = exponent + self._slope(name, theta[name]) * column
        return np.exp(np.clip(exponent, -700.0, 700.0))

    def gradient(self, theta: Theta, data: Data) -> dict[str, np.ndarray]:
        """Exact derivatives."""
        return self.linearise(theta, data)[1]

    def linearise(self, theta: Theta, data: Data) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Every derivative is a multiple of the prediction."""
        f = self.predict(theta, data)
        slopes = {
            name: f * column * self._slope_derivative(name, theta[name]) for name, column in self._columns(data).items()
        }
        return f, {self._factor: f / theta[self._factor], **slopes}

    def starts(self, data: Data, rng: np.random.Generator) -> list[dict[str, float]]:
        """The log-linear solution on positive points; then exponents around it, each with its best factor."""
        columns, delta = self._columns(data), data["delta"]
        keep, logs = delta > 0, {p.name for p in self.parameters if p.log}
        design = np.column_stack([np.ones(len(delta)), *columns.values()])
        slopes = np.linalg.lstsq(design[keep], np.log(delta[keep]), rcond=None)[0][1:]
        center = [self._constant(name, slope) for name, slope in zip(columns, slopes)]
        center = np.array([np.log(value) if name in logs else value for name, value in zip(columns, center)])
        spread = rng.normal(0.0, 0.5, (N_STARTS, len(center)))
        spread[0] = 0.0
        guesses = []
        for draw in center + spread:
            drawn = {name: float(np.exp(value)) if name in logs else float(value) for name, value in zip(columns, draw)}
            theta = {self._factor: 1.0, **drawn}
            shape = np.log(self.predict(theta, data))
            theta[self._factor] = float(np.exp(np.mean(np.log(delta[keep]) - shape[keep])))
            guesses.append(theta)
        return guesses

    def objection(self, data: Data) -> Finding | None:
        """Also: too few deltas that are significantly above zero."""
        needed = errors_needed(data.get("df", np.nan))
        clear = int(np.sum((data["delta"] > 0) & (data["delta"] > needed * data["se"])))
        n, p = len(data["delta"]), self.n_free
        if n > p and clear < p:
            return why(Why.TOO_FEW_CLEAR_DELTAS, clear=clear, deltas=n, needed=p)
        return super().objection(data)
