"""Degradation from post-training quantization: equation 2 of Kumar et al., and its form for one model size.

    delta = C_T · D^gamma_D / N^gamma_N · exp(−P/gamma_post)            (arXiv 2411.04330, eq. 2)

A trajectory has one N, and then C_T and gamma_N only ever occur as the product C_T·N^−gamma_N: no data can
tell them apart.  `KumarPTQRatio` sets gamma_N = gamma_D = gamma, which makes D/N the only variable.  That is
a choice and not a finding: for one N it describes the same curves as eq. 2, and says nothing about another N.

In logarithms both are linear in (log C, exponents, 1/gamma_post), hence solved exactly on the positive
points. That solution only starts the search, for two reasons: points with delta ≤ 0 carry information and
have no logarithm, and the noise of delta is additive.

With one bit-width nothing tells the factor from e^(−P/gamma_post) either.  Their product is all that D_crit at
this bit-width needs, so gamma_post may be given instead of fitted; the factor then holds only together with it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np

from ptq_eval.laws.base import Data, Law, Parameter, Theta

N_STARTS = 24
_GAMMA_POST = Parameter("gamma_post", 0.05, 20.0, "bits", log=True)


class _Exponential(Law):
    """What both forms share: the response is exp(log C + slopes·log variables − P/gamma_post)."""

    response: ClassVar[str] = "delta"
    columns: ClassVar[tuple[str, ...]] = ("N", "D", "P")
    min_scatter: ClassVar[float] = 0.01
    undetermined: ClassVar[str] = (
        "these --bits do not tell the constants apart: at least two widths whose delta stands out from zero are "
        "needed, or one width alone"
    )

    def __init__(self, gamma_post: float | None = None) -> None:
        """`gamma_post` in bits: given, for data of one bit-width; None, to be fitted."""
        if gamma_post is not None:
            given = replace(_GAMMA_POST, low=gamma_post, high=gamma_post)
            self.parameters = (*self.parameters[:-1], given)
            self.needs = {name: count for name, count in self.needs.items() if name != "P"}

    @abstractmethod
    def _columns(self, data: Data) -> dict[str, np.ndarray]:
        """By name of its exponent, the logarithm that the exponent multiplies."""

    @property
    def _factor(self) -> str:
        return self.parameters[0].name

    def predict(self, theta: Theta, data: Data) -> np.ndarray:
        """Delta in nats per token, for raw D and N and P in bits."""
        exponent = np.log(theta[self._factor]) - data["P"] / theta["gamma_post"]
        for name, column in self._columns(data).items():
            exponent = exponent + theta[name] * column
        return np.exp(np.clip(exponent, -700.0, 700.0))

    def gradient(self, theta: Theta, data: Data) -> dict[str, np.ndarray]:
        """Exact derivatives."""
        f = self.predict(theta, data)
        return {
            self._factor: f / theta[self._factor],
            **{name: f * column for name, column in self._columns(data).items()},
            "gamma_post": f * data["P"] / np.square(theta["gamma_post"]),
        }

    def starts(self, data: Data, rng: np.random.Generator) -> list[dict[str, float]]:
        """The log-linear solution on positive points; then exponents around it, each with its best factor."""
        columns, delta = self._columns(data), data["delta"]
        keep = delta > 0
        design = np.column_stack([np.ones(len(delta)), *columns.values(), -data["P"]])
        solution = np.linalg.lstsq(design[keep], np.log(delta[keep]), rcond=None)[0]
        center = np.append(solution[1:-1], np.log(1 / max(solution[-1], 0.05)))
        spread = rng.normal(0.0, 0.5, (N_STARTS, len(center)))
        spread[0] = 0.0
        guesses = []
        for draw in center + spread:
            theta = {self._factor: 1.0, **dict(zip(columns, draw)), "gamma_post": float(np.exp(draw[-1]))}
            shape = np.log(self.predict(theta, data))
            theta[self._factor] = float(np.exp(np.mean(np.log(delta[keep]) - shape[keep])))
            guesses.append(theta)
        return guesses

    def objection(self, data: Data) -> str:
        """Also: too few deltas that stand out from their noise."""
        clear = int(np.sum((data["delta"] > 0) & (data["delta"] > 2 * data["se"])))
        p = self.n_free
        if len(data["delta"]) > p and clear < p:
            found = f"only {clear} of {len(data['delta'])} deltas are above zero"
            return f"{found} by two standard errors, {p} needed"
        return super().objection(data)


class KumarPTQ(_Exponential):
    """delta = C_T · D^gamma_D / N^gamma_N · exp(−P/gamma_post); Kumar et al., arXiv 2411.04330, eq. 2."""

    name = "kumar_ptq"
    equation = "delta = C_T * D^gamma_D / N^gamma_N * exp(-P / gamma_post)"
    source = "Kumar et al. 2024, arXiv 2411.04330, eq. 2"
    parameters = (
        Parameter("C_T", 1e-60, 1e60, "nats per token", log=True),
        Parameter("gamma_D", -3.0, 3.0),
        Parameter("gamma_N", -3.0, 3.0),
        _GAMMA_POST,
    )
    needs: Mapping[str, int] = {"N": 2, "D": 2, "P": 2}

    def _columns(self, data: Data) -> dict[str, np.ndarray]:
        return {"gamma_D": np.log(data["D"]), "gamma_N": -np.log(data["N"])}


class KumarPTQRatio(_Exponential):
    """delta = C · (D/N)^gamma · exp(−P/gamma_post): eq. 2 with gamma_N = gamma_D, for a single N."""

    name = "kumar_ptq_ratio"
    equation = "delta = C * (D/N)^gamma * exp(-P / gamma_post)"
    source = "Kumar et al. 2024, arXiv 2411.04330, eq. 2 with gamma_N = gamma_D"
    parameters = (
        Parameter("C", 1e-60, 1e60, "nats per token", log=True),
        Parameter("gamma", -3.0, 3.0),
        _GAMMA_POST,
    )
    needs: Mapping[str, int] = {"D/N": 2, "P": 2}

    def variables(self, data: Data) -> dict[str, np.ndarray]:
        """D/N and P."""
        return {"D/N": data["D"] / data["N"], "P": data["P"]}

    def _columns(self, data: Data) -> dict[str, np.ndarray]:
        return {"gamma": np.log(data["D"] / data["N"])}
