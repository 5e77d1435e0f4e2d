"""Degradation from post-training quantization: equation 2 of Kumar et al., and its form for one model size.

    delta = C_T · D^gamma_D / N^gamma_N · exp(−P/gamma_post)            (arXiv 2411.04330, eq. 2)

A trajectory has one N, and then C_T and gamma_N only ever occur as the product C_T·N^−gamma_N: no data can
tell them apart.  `KumarPTQRatio` sets gamma_N = gamma_D = gamma, which makes D/N the only variable.  That is
a choice and not a finding: for one N it describes the same curves as eq. 2, and says nothing about another N.

In logarithms both are linear in (log C, exponents, 1/gamma_post).

With one bit-width nothing tells the factor from e^(−P/gamma_post) either.  Their product is all that D_crit at
this bit-width needs, so gamma_post may be given instead of fitted; the factor then holds only together with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from ptq_eval.laws.base import Data, Parameter
from ptq_eval.laws.formulas.loglinear import LogLinear

_GAMMA_POST = Parameter("gamma_post", 0.05, 20.0, "bits", log=True)


class _Exponential(LogLinear):
    """What both forms share: the last column is P, and its slope −1/gamma_post."""

    columns = ("N", "D", "P")
    one_value: ClassVar[tuple[str, ...]] = ("P",)

    def __init__(self, gamma_post: float | None = None) -> None:
        """`gamma_post` in bits: given, for data of one bit-width; None, to be fitted."""
        if gamma_post is not None:
            given = replace(_GAMMA_POST, low=gamma_post, high=gamma_post)
            self.parameters = (*self.parameters[:-1], given)
            self.needs = {name: count for name, count in self.needs.items() if name != "P"}

    def _slope(self, name: str, value: Any) -> Any:
        return -1 / value if name == "gamma_post" else value

    def _slope_derivative(self, name: str, value: Any) -> Any:
        return 1 / np.square(value) if name == "gamma_post" else 1.0

    def _constant(self, name: str, slope: float) -> float:
        return 1 / max(-slope, 0.05) if name == "gamma_post" else slope


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
    linear = ("C_T",)
    needs: Mapping[str, int] = {"N": 2, "D": 2, "P": 2}

    def _columns(self, data: Data) -> dict[str, np.ndarray]:
        return {"gamma_D": np.log(data["D"]), "gamma_N": -np.log(data["N"]), "gamma_post": data["P"]}


class KumarPTQRatio(_Exponential):
    """delta = C · (D/N)^gamma · exp(−P/gamma_post): eq. 2 of Kumar et al. with gamma_N = gamma_D, for a single N."""

    name = "kumar_ptq_ratio"
    equation = "delta = C * (D/N)^gamma * exp(-P / gamma_post)"
    source = "Kumar et al. 2024, arXiv 2411.04330, eq. 2 with gamma_N = gamma_D"
    parameters = (
        Parameter("C", 1e-60, 1e60, "nats per token", log=True),
        Parameter("gamma", -3.0, 3.0),
        _GAMMA_POST,
    )
    linear = ("C",)
    grows = "gamma"
    needs: Mapping[str, int] = {"D/N": 2, "P": 2}

    def variables(self, data: Data) -> dict[str, np.ndarray]:
        """D/N and P."""
        return {"D/N": data["D"] / data["N"], "P": data["P"]}

    def _columns(self, data: Data) -> dict[str, np.ndarray]:
        return {"gamma": np.log(data["D"] / data["N"]), "gamma_post": data["P"]}
