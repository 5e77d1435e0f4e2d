"""Degradation as a power law in the bits: Ouyang et al., arXiv 2411.17691.

    delta = k · D^gamma_D / (N^gamma_N · P^gamma_P)

The rival of equation 2 of Kumar et al., which falls exponentially in P.  Between 2 and 4 bits the two are easily
distinguished; both have four constants.  Its published constants stem from intermediate checkpoints of the Pythia
models, so D is confounded with the learning rate there.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ptq_eval.laws.base import Data, Parameter
from ptq_eval.laws.formulas.loglinear import LogLinear


class Ouyang(LogLinear):
    """delta = k · D^gamma_D / (N^gamma_N · P^gamma_P); Ouyang et al., arXiv 2411.17691."""

    name = "ouyang"
    equation = "delta = k * D^gamma_D / (N^gamma_N * P^gamma_P)"
    source = "Ouyang et al. 2024, arXiv 2411.17691"
    parameters = (
        Parameter("k", 1e-60, 1e60, "nats per token", log=True),
        Parameter("gamma_D", -3.0, 3.0),
        Parameter("gamma_N", -3.0, 3.0),
        Parameter("gamma_P", 0.05, 40.0, log=True),
    )
    columns = ("N", "D", "P")
    linear = ("k",)
    needs: Mapping[str, int] = {"N": 2, "D": 2, "P": 2}

    def _columns(self, data: Data) -> dict[str, np.ndarray]:
        return {"gamma_D": np.log(data["D"]), "gamma_N": -np.log(data["N"]), "gamma_P": -np.log(data["P"])}

    def _constant(self, name: str, slope: float) -> float:
        return max(slope, 0.05) if name == "gamma_P" else slope
