"""The rival explanation: degradation follows the schedule of the learning rate, not the number of tokens.

Catalan-Tatjer et al. (arXiv 2510.06213) find that degradation jumps when the learning rate decays and hardly depends on
tokens where all models are annealed alike.  Along one decaying run both change together, so a law in D fits such a
run well and means nothing.  Written as a law, with what equation 2 of Kumar et al. has beside D:

    delta = C_T · D^gamma_D / N^gamma_N · exp(gamma_S·(S − 1) − P/gamma_post)

S is 1 while the learning rate is at its peak and grows to 2 as it decays to zero: S − 1 is the share of the decay that
is done, so e^gamma_S is how much a full decay multiplies delta.  A share has the same meaning in runs of different
peak, and is finite where a schedule ends at zero, which the logarithm of the rate is not.  The paper gives no formula;
this one is the project's, chosen because it contains equation 2 (gamma_S = 0) and the phase alone (gamma_D = 0).

So the question is nested: does D add to the phase, and does the phase add to D?  Warm-up counts as peak, since nothing
has decayed yet.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ptq_eval.laws.base import Data, Law, Parameter, Theta
from ptq_eval.laws.formulas.kumar import KumarPTQ

_GAMMA_S = Parameter("gamma_S", -5.0, 5.0)


class KumarPhase(KumarPTQ):
    """delta = C_T · D^gamma_D / N^gamma_N · exp(gamma_S·(S − 1) − P/gamma_post): equation 2 and the phase."""

    name = "kumar_phase"
    equation = "delta = C_T * D^gamma_D / N^gamma_N * exp(gamma_S * (S - 1) - P / gamma_post)"
    source = "Kumar et al. 2024, arXiv 2411.04330, eq. 2, with the schedule's phase after arXiv 2510.06213"
    columns = ("N", "D", "P", "S")
    parameters = (*KumarPTQ.parameters[:3], _GAMMA_S, KumarPTQ.parameters[3])
    needs: Mapping[str, int] = {**KumarPTQ.needs, "S": 2}

    def _columns(self, data: Data) -> dict[str, np.ndarray]:
        own = super()._columns(data)
        return {
            **{k: own[k] for k in ("gamma_D", "gamma_N")},
            "gamma_S": data["S"] - 1,
            "gamma_post": own["gamma_post"],
        }


class PhasePTQ(KumarPhase):
    """delta = C_T / N^gamma_N · exp(gamma_S·(S − 1) − P/gamma_post): the phase instead of D."""

    name = "phase"
    equation = "delta = C_T / N^gamma_N * exp(gamma_S * (S - 1) - P / gamma_post)"
    source = "the schedule's phase instead of tokens, after Catalan-Tatjer et al. 2025, arXiv 2510.06213"
    columns = ("N", "P", "S")
    parameters = tuple(p for p in KumarPhase.parameters if p.name != "gamma_D")
    needs: Mapping[str, int] = {"N": 2, "P": 2, "S": 2}

    def _columns(self, data: Data) -> dict[str, np.ndarray]:
        own = super()._columns({"D": np.ones(()), **data})
        return {name: column for name, column in own.items() if name != "gamma_D"}

    def critical_tokens(self, theta: Theta, loss: Theta, data: Data) -> float:
        """Infinite: where delta does not depend on tokens, no number of them makes a model worse."""
        return float("inf")


def laws_of_phase() -> dict[str, Law]:
    """The candidates of the test, by what they say delta follows."""
    return {"tokens": KumarPTQ(), "phase": PhasePTQ(), "tokens and phase": KumarPhase()}
