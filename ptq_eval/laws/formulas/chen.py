"""The cost of quantization-aware training, with the group size in the law: Chen et al., arXiv 2505.14302.

    delta = k · D^gamma_D · (log2 G)^gamma_G / N^gamma_N

G is how many numbers share one scale (column "G"); delta vanishes at G = 1, where every weight has its own.  One set
of constants holds for one pair of bit-widths: the number of bits is not a variable.  Nothing in the form is peculiar
to quantization-aware training, so it can be fitted to post-training quantization at one bit-width as well.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ptq_eval.laws.base import Data, Parameter
from ptq_eval.laws.findings import Finding, Why, why
from ptq_eval.laws.formulas.loglinear import LogLinear


class Chen(LogLinear):
    """delta = k · D^gamma_D · (log2 G)^gamma_G / N^gamma_N; Chen et al., arXiv 2505.14302."""

    name = "chen"
    equation = "delta = k * D^gamma_D * log2(G)^gamma_G / N^gamma_N"
    source = "Chen et al. 2025, arXiv 2505.14302"
    parameters = (
        Parameter("k", 1e-60, 1e60, "nats per token", log=True),
        Parameter("gamma_D", -3.0, 3.0),
        Parameter("gamma_N", -3.0, 3.0),
        Parameter("gamma_G", -3.0, 10.0),
    )
    columns = ("N", "D", "G")
    linear = ("k",)
    needs: Mapping[str, int] = {"N": 2, "D": 2, "G": 2}

    def objection(self, data: Data) -> Finding | None:
        """Also: group sizes of one, for which the law predicts zero whatever its constants."""
        return why(Why.GROUP_SIZE_ONE) if np.any(data["G"] <= 1) else super().objection(data)

    def _columns(self, data: Data) -> dict[str, np.ndarray]:
        return {
            "gamma_D": np.log(data["D"]),
            "gamma_N": -np.log(data["N"]),
            "gamma_G": np.log(np.log2(data["G"])),
        }
