"""Contract: a law that does not describe its deltas is never passed off as one that does."""

import math
from dataclasses import replace

import numpy as np
import pytest

from ptq_eval.laws import Estimate, TurningPoint, analyse, fit
from ptq_eval.laws.formulas.kumar import KumarPTQRatio
from ptq_eval.laws.turning.predicted import poorly, verdict
from tests.laws.synthetic import RATIO, RATIOS, points, ratio, table

RESULT = fit(
    KumarPTQRatio(), points(ratio, RATIO, [80e3], RATIOS, (2, 3, 4), np.random.default_rng(0), scatter=0.05), n_boot=0
)


@pytest.mark.parametrize(
    ("r2", "scatter", "words"),
    [
        (0.51, 0.49, ""),
        (-0.2, 0.81, "R² = −0.2, scatter 81 %"),
        (0.49, math.nan, "R² = 0.49"),
        (0.9, 0.51, "R² = 0.9, scatter 51 %"),
        (math.nan, math.nan, ""),
    ],
)
def test_poor_fits_are_those_of_little_r2_or_much_scatter(r2, scatter, words):
    assert poorly(replace(RESULT, r2=r2, scatter=scatter)) == words


def test_a_law_without_constants_is_not_called_poor():
    assert poorly(replace(RESULT, r2=-1.0, status="not_identified: 2 points")) == ""


def wild(_theta, N, D, P):
    """Clearly positive at every checkpoint and bit-width, and in no order that a power of D could follow."""
    return 0.3 * np.exp(2 * np.sin(40 * np.log(D) + P)) * np.exp(-P / 0.9)


def test_a_poor_fit_is_warned_of_by_name_and_a_good_one_is_not():
    found = {}
    for name, law in (("good", ratio), ("poor", wild)):
        out = analyse(*table(np.random.default_rng(0), sizes=(80e3,), bits=(2, 3, 4), delta=law), n_boot=20)
        found[name] = [w for w in out["warnings"] if "the law describes these deltas poorly" in w]
    assert found["good"] == []
    (warning,) = found["poor"]
    assert warning.startswith("rtn (")
    assert "R² = " in warning


def falling(tokens, lowest):
    return TurningPoint(lowest, Estimate(lowest), False, 0.0 if lowest == tokens else 0.01, 0.02, 0.01, 9)


def test_a_predicted_turn_that_the_data_contradict_is_said_to_be_so():
    inside = Estimate(5e7, 4e7, 6e7)
    text = verdict(1e5, 1e8, inside, "", falling(1e8, 1e8), False, poor="R² = −0.2")
    assert text.startswith("predicted at 0.5× the largest D seen, D = 50M tokens (D/N = 500); ")
    assert text.endswith(
        "contradicted by the measurement: the loss still falls to D = 100M tokens (D/N = 1e+03); "
        "the law describes these deltas poorly (R² = −0.2)"
    )
    text = verdict(1e5, 1e8, inside, "", falling(1e8, 7e7), False)
    assert "not confirmed by the measurement: the loss is least at D = 70M tokens" in text
    text = verdict(1e5, 1e8, Estimate(2e8, 1.5e8, 3e8), "", falling(1e8, 1e8), False)
    assert "contradicted" not in text
    assert "poorly" not in text


def beyond_the_law(theta, N, D, P):
    """Follows the law but at 8 bits, where delta is large at one checkpoint and nothing elsewhere."""
    one = np.isclose(D, N * RATIOS[2])
    return np.where(one, 0.05, 0.0) if P == 8 else ratio(theta, N, D, P)


def nothing_at_eight(theta, N, D, P):
    return 0.0 if P == 8 else ratio(theta, N, D, P)


@pytest.mark.parametrize(
    ("law", "words"),
    [
        (beyond_the_law, "at 8 bits the law does not describe the deltas, "),
        (nothing_at_eight, "at 8 bits delta is not told apart from zero"),
    ],
)
def test_deltas_that_are_zero_and_deltas_that_the_law_misses_are_told_apart(law, words):
    rows, windows = table(np.random.default_rng(1), sizes=(80e3,), bits=(2, 3, 4, 8), delta=law, noise=0.02)
    critical = {c["bits"]: c for c in analyse(rows, windows, n_boot=50)["critical_tokens"]}
    assert critical[8.0]["predicted"] is None
    assert critical[8.0]["verdict"].startswith(f"not identifiable: {words}")
