"""The full-precision loss with an outer exponent: how shortages of parameters and of tokens add up.

    L = E + (A/N^alpha + B/D^beta)^gamma

With gamma = 1 it is Chinchilla's law.  With E = 0 and beta = 1 it is the first law of both variables, equation 1.5 of
Kaplan et al. (arXiv 2001.08361): [(N_c/N)^{alpha_N/alpha_D} + D_c/D]^{alpha_D}, gamma being alpha_D.  Only the bend
between the two regimes tells gamma from the exponents, so it needs a table in which both are seen.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from scipy.optimize import nnls

from ptq_eval.laws.base import Data, Parameter, Theta
from ptq_eval.laws.formulas.chinchilla import N_STARTS, Chinchilla

_GAMMAS, _SHARES, _NODES = (0.25, 0.5, 1.0, 2.0), (0.0, 0.4, 0.7, 0.9), np.geomspace(0.05, 1.5, 9)
_TINY = 1e-300


class Outer(Chinchilla):
    """L = E + (A/N^alpha + B/D^beta)^gamma; Kaplan et al., arXiv 2001.08361, eq. 1.5, with a constant E."""

    name = "outer"
    equation = "L = E + (A / N^alpha + B / D^beta)^gamma"
    source = "Kaplan et al. 2020, arXiv 2001.08361, eq. 1.5 (there E = 0 and beta = 1)"
    parameters = (*Chinchilla.parameters, Parameter("gamma", 0.02, 20.0, log=True))
    linear: ClassVar[tuple[str, ...]] = ("E",)

    def predict(self, theta: Theta, data: Data) -> np.ndarray:
        """Loss in nats per token, for raw N and D."""
        inner = super().predict({**theta, "E": 0.0}, data)
        return theta["E"] + np.maximum(inner, _TINY) ** theta["gamma"]

    def linearise(self, theta: Theta, data: Data) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Prediction and exact derivatives."""
        inner, by = super().linearise({**theta, "E": 0.0}, data)
        inner = np.maximum(inner, _TINY)
        outer = inner ** theta["gamma"]
        slope = theta["gamma"] * outer / inner
        found = {name: slope * derivative for name, derivative in by.items()}
        return theta["E"] + outer, {**found, "E": np.ones_like(outer), "gamma": outer * np.log(inner)}

    def starts(self, data: Data, rng: np.random.Generator) -> list[dict[str, float]]:
        """For some gamma, E and exponents the factors that suit (L − E)^{1/gamma} best."""
        loss, found = data["loss"], []
        for gamma in _GAMMAS:
            for share in _SHARES:
                E = share * float(loss.min())
                root = (loss - E) ** (1 / gamma)
                for alpha in _NODES:
                    for beta in _NODES * np.exp(rng.uniform(-0.03, 0.03)):
                        theta = self._node(data, root, {"E": E, "alpha": alpha, "beta": beta, "gamma": gamma})
                        misfit = float(np.sum(np.square(loss - self.predict(theta, data))))
                        found.append((misfit, theta))
        return [theta for _, theta in sorted(found, key=lambda pair: pair[0])[:N_STARTS]]

    def _node(self, data: Data, root: np.ndarray, theta: dict[str, float]) -> dict[str, float]:
        logs = [-theta[exponent] * np.log(data[x]) for x, _, exponent in self.terms]
        tops = [float(column.max()) for column in logs]
        values, _ = nnls(np.column_stack([np.exp(c - top) for c, top in zip(logs, tops)]), root)
        sizes = np.log(np.maximum(values, 1e-6 * max(float(values.max()), 1e-9))) - tops
        return {**theta, **{factor: float(np.exp(size)) for (_, factor, _), size in zip(self.terms, sizes)}}
