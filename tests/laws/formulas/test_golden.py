"""Golden: numbers that follow from published constants (Kumar et al., arXiv 2411.04330, Table 2)."""

import numpy as np
import pytest

from ptq_eval.laws import critical_tokens
from ptq_eval.laws.formulas.chinchilla import Chinchilla
from ptq_eval.laws.formulas.kumar import KumarPTQ
from tests.laws.synthetic import KUMAR, KUMAR_LOSS


@pytest.mark.parametrize(
    ("N", "bits", "tokens"),
    [
        (30e6, 3, 16.4e9),
        (30e6, 4, 88.6e9),
        (30e6, 5, 479e9),
        (30e6, 6, 2.59e12),
        (220e6, 3, 32.4e9),
        (220e6, 4, 175e9),
        (220e6, 5, 948e9),
    ],
)
def test_critical_tokens_of_the_published_constants(N, bits, tokens):
    assert critical_tokens(N, bits, constants=[KUMAR, KUMAR_LOSS]) == pytest.approx(tokens, rel=0.005)


def test_a_degradation_e_to_the_b_times_larger_turns_earlier_by_a_factor_3_08():
    larger = {**KUMAR, "C_T": KUMAR["C_T"] * np.exp(1.1277)}
    turns = [critical_tokens(30e6, 4, constants=[theta, KUMAR_LOSS]) for theta in (KUMAR, larger)]
    ratio = turns[0] / turns[1]
    assert ratio == pytest.approx(3.08, rel=0.002)


def test_laws_at_one_point_worked_by_hand():
    """N = 1e8, D = 1e10: D^0.5068 = 10^5.068, N^0.3439 = 10^2.7512, e^(−4/0.5907) = 1.14583e-3."""
    data = {"N": np.array([1e8]), "D": np.array([1e10]), "P": np.array([4.0])}
    delta = 0.0598 * 10**5.068 / 10**2.7512 * 1.14583e-3
    assert KumarPTQ().predict(KUMAR, data)[0] == pytest.approx(delta, rel=1e-5)
    loss = 2.7648 + 4.299e3 / 10**3.972 + 1.806e4 / 10**4.965
    assert Chinchilla().predict(KUMAR_LOSS, data)[0] == pytest.approx(loss, rel=1e-12)
