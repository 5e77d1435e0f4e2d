"""The loss of the full-precision model: the Chinchilla law, and its form for one model size.

    L = E + A/N^alpha + B/D^beta                    (Hoffmann et al., arXiv 2203.15556, eq. 2)

With one N the term A/N^alpha is a constant, so `ChinchillaD` fits E + B/D^beta, and its E is the sum
E + A/N^alpha: the loss that this size would reach with unlimited data, not the entropy of the text.

Given the exponents both are linear in the remaining constants, so the search is started by variable
projection: a grid over the exponents, on each node the exact non-negative linear solution, and the best
nodes as starts. The constants trade off against each other along a narrow valley; compare objectives, not
constants alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from scipy.optimize import nnls

from ptq_eval.laws.base import Data, Law, Parameter, Theta

N_STARTS = 12
_E = Parameter("E", 0.0, 20.0, "nats per token")
_B = Parameter("B", 1e-12, 1e30, "nats per token", log=True)
_BETA = Parameter("beta", 0.01, 3.0)
_TINY = 1e-9


class _PowerSum(Law):
    """A constant plus decreasing power laws: `terms` names variable, factor and exponent of each."""

    response: ClassVar[str] = "loss"
    min_scatter: ClassVar[float] = 1e-4
    terms: ClassVar[tuple[tuple[str, str, str], ...]]

    def predict(self, theta: Theta, data: Data) -> np.ndarray:
        """Loss in nats per token, for raw N and D."""
        powers = [theta[factor] * data[x] ** -theta[exponent] for x, factor, exponent in self.terms]
        return theta["E"] + sum(powers[1:], powers[0])

    def gradient(self, theta: Theta, data: Data) -> dict[str, np.ndarray]:
        """Exact derivatives."""
        derivatives = {"E": np.ones_like(self.predict(theta, data))}
        for x, factor, exponent in self.terms:
            power = data[x] ** -theta[exponent]
            derivatives[factor] = power + 0 * derivatives["E"]
            derivatives[exponent] = -theta[factor] * power * np.log(data[x])
        return derivatives

    def objection(self, data: Data) -> str:
        """Also: the loss is not seen to fall with D, taken linear in the logarithms for this purpose."""
        if why := super().objection(data):
            return why
        design = np.column_stack([*(np.log(data[x]) for x in self.columns), np.ones(len(data["loss"]))])
        slope = np.linalg.lstsq(design, data["loss"], rcond=None)[0]
        residual = data["loss"] - design @ slope
        variance = float(residual @ residual) / (len(residual) - design.shape[1])
        which = self.columns.index("D")
        error = np.sqrt(variance * np.linalg.pinv(design.T @ design)[which, which])
        falls = slope[which] < -2 * error and slope[which] < -_TINY
        return "" if falls else "the loss is not seen to fall with D"

    def starts(self, data: Data, rng: np.random.Generator) -> list[dict[str, float]]:
        """The best nodes of a grid over the exponents, with their exact linear constants."""
        loss, found = data["loss"], []
        axis = np.geomspace(0.03, 1.5, 36 if len(self.terms) == 1 else 18)
        axis = axis * np.exp(rng.uniform(-0.03, 0.03, len(axis)))
        for node in np.stack(np.meshgrid(*[axis] * len(self.terms)), -1).reshape(-1, len(self.terms)):
            logs = [-e * np.log(data[x]) for e, (x, _, _) in zip(node, self.terms)]
            tops = [float(column.max()) for column in logs]
            columns = [np.exp(column - top) for column, top in zip(logs, tops)]
            linear, misfit = nnls(np.column_stack([np.ones(len(loss)), *columns]), loss)
            theta = {"E": float(linear[0])}
            for exponent, value, top, (_, factor, name) in zip(node, linear[1:], tops, self.terms):
                theta |= {factor: float(np.exp(np.log(max(value, _TINY)) - top)), name: float(exponent)}
            found.append((misfit, theta))
        return [theta for _, theta in sorted(found, key=lambda pair: pair[0])[:N_STARTS]]


class Chinchilla(_PowerSum):
    """L = E + A/N^alpha + B/D^beta; Hoffmann et al., arXiv 2203.15556, eq. 2."""

    name = "chinchilla"
    equation = "L = E + A / N^alpha + B / D^beta"
    source = "Hoffmann et al. 2022, arXiv 2203.15556, eq. 2"
    parameters = (
        _E,
        Parameter("A", 1e-12, 1e30, "nats per token", log=True),
        Parameter("alpha", 0.01, 3.0),
        _B,
        _BETA,
    )
    columns = ("N", "D")
    needs: Mapping[str, int] = {"N": 3, "D": 3}
    terms = (("N", "A", "alpha"), ("D", "B", "beta"))


class ChinchillaD(_PowerSum):
    """L = E + B/D^beta for one N; E absorbs A/N^alpha."""

    name = "chinchilla_d"
    equation = "L = E + B / D^beta  (one N: E contains A / N^alpha)"
    source = "Hoffmann et al. 2022, arXiv 2203.15556, eq. 2, at fixed N"
    parameters = (_E, _B, _BETA)
    columns = ("D",)
    needs: Mapping[str, int] = {"D": 3}
    terms = (("D", "B", "beta"),)
