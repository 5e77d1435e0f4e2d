"""How predictions and observations of adapters correlate, and what the page says of bases that do not count."""

import math

import numpy as np
import pytest

from ptq_eval.report.adapt.words import agreement
from ptq_eval.results.adaptation import correlations


def base(bits, predicted, delta):
    within = dict.fromkeys(("kl_within", "delta_within", "variance_within"), False)
    variance = {"variance_full": 1.0, "variance_predicted": 1 + predicted, "variance": 1 + 2 * predicted}
    about = {"quantizer": "rtn", "bits": bits}
    return {**about, "predicted": predicted, "kl": 1.1 * predicted, "delta": delta, **within, **variance}


def test_bases_without_a_logarithm_are_not_in_r_and_are_counted():
    rows = [base(8, 0.001, -0.0001), base(4, 0.1, 0.12), base(3, 0.4, 0.3), base(2, 2.0, 3.0)]
    found = correlations(rows)
    used = np.log([[0.1, 0.4, 2.0], [0.12, 0.3, 3.0]])
    assert found["delta"] == (pytest.approx(np.corrcoef(used)[0, 1]), 3)
    assert found["kl"] == (pytest.approx(1), 4)
    text = agreement(rows, found).splitlines()
    assert "r of the logarithms over bases 1." in text[0]
    assert "r of the logarithms over 3 of 4 bases, those where both are above zero, 0.9" in text[1]


def test_too_few_bases_have_no_correlation():
    rows = [base(8, 0.001, -0.0001), base(4, 0.1, -0.1), base(3, 0.4, 0.3)]
    found = correlations(rows)
    assert math.isnan(found["delta"].r)
    assert "no correlation over fewer than 3 bases" in agreement(rows, found).splitlines()[1]
