"""Training in floating-point formats, bit by bit: Sun et al., arXiv 2501.02423.

    L = E + A/N^alpha + B/D^beta + D^beta/N^alpha · log2(B_g) / (gamma·(E_bits + ½)^delta·(M_bits + ½)^nu)

E_bits and M_bits are the exponent and mantissa bits of the format, B_g how many numbers share one scale (columns
"E_bits", "M_bits" and "B_g").  The paper writes n, d and epsilon for A, B and E.  What quantization adds grows with
D^beta/N^alpha, the inverse of what is left to learn: one D more and the loss rises again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from scipy.optimize import nnls

from ptq_eval.laws.base import Data, Parameter, Theta
from ptq_eval.laws.formulas.chinchilla import Chinchilla, Growing

_DRAWS, _BEST = 600, 12
_TINY = 1e-12


class Sun(Growing):
    """Loss of training in a floating-point format; Sun et al., arXiv 2501.02423.

    Columns N, D, E_bits, M_bits, B_g; a format may have no mantissa bits (E3M0).
    """

    name = "sun"
    equation = (
        "L = E + A / N^alpha + B / D^beta"
        " + D^beta / N^alpha * log2(B_g) / (gamma * (E_bits + 0.5)^delta * (M_bits + 0.5)^nu)"
    )
    source = "Sun et al. 2025, arXiv 2501.02423"
    response: ClassVar[str] = "loss"
    grows: ClassVar[str] = "beta"
    min_scatter: ClassVar[float] = 1e-4
    columns = ("N", "D", "E_bits", "M_bits", "B_g")
    from_zero: ClassVar[tuple[str, ...]] = ("M_bits",)
    parameters = (
        *Chinchilla.parameters,
        Parameter("gamma", 1e-12, 1e30, "tokens^beta per parameter^alpha per nat", log=True),
        Parameter("delta", 0.0, 20.0),
        Parameter("nu", 0.0, 20.0),
    )
    linear = ("E", "A", "B")
    absent = ("A", "B")
    needs: Mapping[str, int] = {"N": 3, "D": 3, "E_bits": 2, "M_bits": 2}

    def predict(self, theta: Theta, data: Data) -> np.ndarray:
        """Loss in nats per token, for raw N and D."""
        return Chinchilla().predict(theta, data) + self.added(theta, data)

    def added(self, theta: Theta, data: Data) -> Any:
        """What the format adds to the loss, in nats per token."""
        logarithm = theta["beta"] * np.log(data["D"]) - theta["alpha"] * np.log(data["N"]) - np.log(theta["gamma"])
        logarithm = (
            logarithm - theta["delta"] * np.log(data["E_bits"] + 0.5) - theta["nu"] * np.log(data["M_bits"] + 0.5)
        )
        return np.exp(np.clip(logarithm, -700.0, 700.0)) * np.log2(data["B_g"])

    def gradient(self, theta: Theta, data: Data) -> dict[str, np.ndarray]:
        """Exact derivatives."""
        return self.linearise(theta, data)[1]

    def linearise(self, theta: Theta, data: Data) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Those of Chinchilla's law, and multiples of what the format adds."""
        added, (f, by) = self.added(theta, data), Chinchilla().linearise(theta, data)
        return f + added, by | {
            "alpha": by["alpha"] - added * np.log(data["N"]),
            "beta": by["beta"] + added * np.log(data["D"]),
            "gamma": -added / theta["gamma"],
            "delta": -added * np.log(data["E_bits"] + 0.5),
            "nu": -added * np.log(data["M_bits"] + 0.5),
        }

    def starts(self, data: Data, rng: np.random.Generator) -> list[dict[str, float]]:
        """Exponents drawn at random, each draw with its best E, A, B and 1/gamma; the best draws."""
        found = []
        for alpha, beta, delta, nu in np.exp(
            rng.uniform(np.log([0.05, 0.05, 0.5, 0.5]), np.log([1, 1.5, 8, 8]), (_DRAWS, 4))
        ):
            theta = {"alpha": alpha, "beta": beta, "gamma": 1.0, "delta": delta, "nu": nu}
            columns = np.stack([data["N"] ** -alpha, data["D"] ** -beta, self.added(theta, data)], -1)
            size = columns.max(axis=0)
            linear, misfit = nnls(np.column_stack([np.ones(len(columns)), columns / size]), data["loss"])
            A, B, inverse = (float(value) for value in np.maximum(linear[1:], _TINY) / size)
            theta |= {"E": float(linear[0]), "A": A, "B": B, "gamma": 1 / inverse}
            found.append((misfit, {name: float(theta[name]) for name in (p.name for p in self.parameters)}))
        return [theta for _, theta in sorted(found, key=lambda pair: pair[0])[:_BEST]]

    def best_format(self, theta: Theta, bits: Any) -> tuple[Any, Any]:
        """The exponent and mantissa bits, not rounded, of the best format of `bits` bits (one is the sign).

        (E + ½) + (M + ½) = bits, so the product of their powers is largest where E + ½ = delta·bits/(delta + nu).
        """
        exponent = theta["delta"] * bits / (theta["delta"] + theta["nu"]) - 0.5
        return exponent, bits - 1 - exponent
