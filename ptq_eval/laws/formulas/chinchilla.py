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
from typing import Any, ClassVar

import numpy as np
from scipy.optimize import nnls

from ptq_eval.laws.base import Data, Law, Parameter, Theta
from ptq_eval.laws.findings import Finding, Why, why

N_STARTS = 12
N_WHOLE = 4
_E = Parameter("E", 0.0, 20.0, "nats per token")
_B = Parameter("B", 1e-12, 1e30, "nats per token", log=True)
_BETA = Parameter("beta", 0.01, 3.0)
_TINY = 1e-9


class _PowerSum(Law):
    """A constant plus decreasing power laws: `terms` names variable, factor and exponent of each."""

    response: ClassVar[str] = "loss"
    min_scatter: ClassVar[float] = 1e-4
    absent: ClassVar[tuple[str, ...]] = ("A", "B")
    terms: ClassVar[tuple[tuple[str, str, str], ...]]

    def predict(self, theta: Theta, data: Data) -> np.ndarray:
        """Loss in nats per token, for raw N and D."""
        return theta["E"] + sum(theta[factor] * power for (_, factor, _), power in self._powers(theta, data))

    def gradient(self, theta: Theta, data: Data) -> dict[str, np.ndarray]:
        """Exact derivatives."""
        return self.linearise(theta, data)[1]

    def linearise(self, theta: Theta, data: Data) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Both at once, from the same powers."""
        f, derivatives = theta["E"], {}
        for (x, factor, exponent), power in self._powers(theta, data):
            term = theta[factor] * power
            f = f + term
            derivatives |= {factor: power, exponent: term * -np.log(data[x])}
        return f, {"E": np.ones_like(f), **derivatives}

    def _powers(self, theta: Theta, data: Data) -> list[tuple[tuple[str, str, str], np.ndarray]]:
        """Each term with x^−exponent; by exp, which is several times faster than a power."""
        return [(term, np.exp(-theta[term[2]] * np.log(data[term[0]]))) for term in self.terms]

    def objection(self, data: Data) -> Finding | None:
        """Also: the loss is not seen to fall with D, taken linear in log D for this purpose.

        What the other variable does is first taken linear as well; then as a cubic, because where it nearly follows D
        its curvature would pass for scatter.
        """
        if reason := super().objection(data):
            return reason
        if "B" not in {p.name for p in self.parameters}:  # fixed: nothing of D is to be determined
            return None
        others = [np.log(data[x]) for x in self.columns if x != "D"]
        for degree in (1, 3):
            powers = [(x - x.mean()) ** k for x in others for k in range(1, degree + 1)]
            if _falls(np.log(data["D"]), powers, data["loss"]):
                return None
        return why(Why.LOSS_DOES_NOT_FALL)

    def starts(self, data: Data, rng: np.random.Generator) -> list[dict[str, float]]:
        """The best nodes of a grid over the exponents, with their exact linear constants."""
        loss, found = data["loss"], list[tuple[float, bool, dict[str, float]]]()
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
            found.append((misfit, bool(np.all(linear[1:] > 0)), theta))
        found.sort(key=lambda item: item[0])
        best = [theta for _, _, theta in found[:N_STARTS]]
        if any(whole for _, whole, _ in found[:N_STARTS]):
            return best
        return best + self._with_all_terms(found, float(np.std(loss)), data)

    def _with_all_terms(self, found: list[tuple[float, bool, dict[str, float]]], size: float, data: Data) -> Any:
        """More starts where the best all lack a term, from which the search would not come back: the slope along the
        logarithm of a factor vanishes with it.  Nodes that have all terms, else the best with a small one added."""
        whole = [theta for _, complete, theta in found if complete][:N_WHOLE]
        if whole:
            return whole
        added = []
        for _, _, theta in found[:: max(1, len(found) // N_WHOLE)]:
            terms = {f: (theta[f] * data[x] ** -theta[e], data[x] ** -theta[e]) for x, f, e in self.terms}
            less = {f: 0.1 * size / float(power.mean()) for f, (term, power) in terms.items() if term.max() < _TINY}
            added.append({**theta, **less, "E": max(theta["E"] - 0.1 * size * len(less), 0.0)})
        return added


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
    linear = ("E", "A", "B")
    needs: Mapping[str, int] = {"N": 3, "D": 3}
    terms = (("N", "A", "alpha"), ("D", "B", "beta"))

    def compute_optimal(self, theta: Theta, product: Any) -> tuple[Any, Any]:
        """The N and D with N·D = `product` (C/6 for a training cost of C FLOPs) and the least loss.

        At the minimum alpha·A/N^alpha = beta·B/D^beta, hence N = G·product^{beta/(alpha+beta)} with
        G = (alpha·A/(beta·B))^{1/(alpha+beta)}; Hoffmann et al., arXiv 2203.15556, eq. 4.
        """
        alpha, beta = theta["alpha"], theta["beta"]
        ratio = np.log(alpha * theta["A"]) - np.log(beta * theta["B"])
        N = np.exp((ratio + beta * np.log(product)) / (alpha + beta))
        return N, product / N


class ChinchillaD(_PowerSum):
    """L = E + B/D^beta for one N; E absorbs A/N^alpha; Hoffmann et al., arXiv 2203.15556, eq. 2."""

    name = "chinchilla_d"
    equation = "L = E + B / D^beta  (one N: E contains A / N^alpha)"
    source = "Hoffmann et al. 2022, arXiv 2203.15556, eq. 2, at fixed N"
    parameters = (_E, _B, _BETA)
    columns = ("D",)
    linear = ("E", "B")
    needs: Mapping[str, int] = {"D": 3}
    terms = (("D", "B", "beta"),)


def _falls(x: np.ndarray, others: list[np.ndarray], loss: np.ndarray) -> bool:
    """Whether the slope of `loss` by x, the `others` held, is below zero by two standard errors."""
    design = np.column_stack([x - x.mean(), *others, np.ones(len(loss))])
    spare = len(loss) - np.linalg.matrix_rank(design)
    if spare < 1:
        return False
    slope = np.linalg.lstsq(design, loss, rcond=None)[0]
    residual = loss - design @ slope
    error = np.sqrt(residual @ residual / spare * np.linalg.pinv(design.T @ design)[0, 0])
    return bool(slope[0] < -2 * error and slope[0] < -_TINY)


class Growing(Law):
    """A law whose degradation is a power of D, so that there is one D beyond which more data makes a model worse."""

    grows: ClassVar[str] = "gamma_D"
    """The constant that is the exponent of D."""

    def added(self, theta: Theta, data: Data) -> Any:
        """What quantization, or the number format of training, adds to the loss, nats per token."""
        return self.predict(theta, data)

    def critical_tokens(self, theta: Theta, loss: Theta, data: Data) -> Any:
        """D in tokens where B/D^beta and what is added are least, for the other variables in `data` (no D needed).

        loss: B and beta.  Kumar et al., arXiv 2411.04330, eq. 13; infinite where delta does not grow with D.
        """
        rise = self.added(theta, {**data, "D": np.ones(())})
        return turning_tokens(loss["B"], loss["beta"], rise, theta[self.grows])


def turning_tokens(B: Any, beta: Any, rise: Any, exponent: Any) -> Any:
    """The D at which B/D^beta + rise·D^exponent is least: [beta·B/(exponent·rise)]^{1/(exponent+beta)}.

    `rise` is the degradation at D = 1.  Infinite where it does not grow with D.
    """
    exponent, rise = np.asarray(exponent, float), np.asarray(rise, float)
    grows = (exponent > 0) & (rise > 0)
    steep, size = np.where(exponent > 0, exponent, 1.0), np.where(rise > 0, rise, 1.0)
    logarithm = (np.log(beta) + np.log(B) - np.log(steep) - np.log(size)) / (steep + beta)
    return np.where(grows & (logarithm < 700), np.exp(np.minimum(logarithm, 700)), np.inf)[()]
