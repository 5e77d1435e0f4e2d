"""Contract: a law that does not describe its deltas is never passed off as one that does."""

import math
from dataclasses import replace

import numpy as np
import pytest

from ptq_eval.laws import Estimate, FitStatus, TurningPoint, Why, analyse, fit
from ptq_eval.laws.findings import why
from ptq_eval.laws.formulas.kumar import KumarPTQRatio
from ptq_eval.laws.turning.predicted import poor_fit
from ptq_eval.laws.turning.verdict import Conflict, PoorFit, verdict
from ptq_eval.report import with_texts
from tests.laws.synthetic import RATIO, RATIOS, points, ratio, table

RESULT = fit(
    KumarPTQRatio(), points(ratio, RATIO, [80e3], RATIOS, (2, 3, 4), np.random.default_rng(0), scatter=0.05), n_boot=0
)


@pytest.mark.parametrize(
    ("r2", "scatter", "poor"),
    [(0.51, 0.49, False), (-0.2, 0.81, True), (0.49, math.nan, True), (0.9, 0.51, True), (math.nan, math.nan, False)],
)
def test_poor_fits_are_those_of_little_r2_or_much_scatter(r2, scatter, poor):
    assert poor_fit(replace(RESULT, r2=r2, scatter=scatter)) == (PoorFit(r2, scatter) if poor else None)


def test_a_law_without_constants_is_not_called_poor():
    nothing = FitStatus.not_identified(why(Why.TOO_FEW_POINTS, points=2, constants=3))
    assert poor_fit(replace(RESULT, r2=-1.0, status=nothing)) is None


def wild(_theta, N, D, P):
    """Clearly positive at every checkpoint and bit-width, and in no order that a power of D could follow."""
    return 0.3 * np.exp(2 * np.sin(40 * np.log(D) + P)) * np.exp(-P / 0.9)


def test_a_poor_fit_is_warned_of_by_name_and_a_good_one_is_not():
    found = {}
    for name, law in (("good", ratio), ("poor", wild)):
        out = analyse(*table(np.random.default_rng(0), sizes=(80e3,), bits=(2, 3, 4), delta=law), n_boot=20)
        found[name] = [w for w in with_texts(out)["warnings"] if "the law describes poorly the deltas" in w]
    assert found["good"] == []
    (warning,) = found["poor"]
    assert "deltas of rtn (" in warning
    assert "scatter " in warning


def falling(tokens, lowest):
    return TurningPoint(lowest, Estimate(lowest), False, 0.0 if lowest == tokens else 0.01, 0.02, 0.01, 9)


def test_a_prediction_inside_the_range_is_qualified_by_what_was_measured():
    inside = Estimate(5e7, 4e7, 6e7)
    poor = PoorFit(-0.2, math.nan)
    found = verdict(inside, None, 1e8, falling(1e8, 7e7), poor=poor)
    assert (found.kind, found.conflict, found.poor_fit) == ("predicted", Conflict.NOT_CONFIRMED, poor)
    alone = replace(falling(1e8, 1e8), n_checkpoints=1)
    assert verdict(inside, None, 1e8, alone).conflict is Conflict.NO_SECOND_CHECKPOINT
    found = verdict(Estimate(2e8, 1.5e8, 3e8), None, 1e8, falling(1e8, 1e8))
    assert (found.kind, found.conflict) == ("predicted", None)


def beyond_the_law(theta, N, D, P):
    """Follows the law but at 8 bits, where delta is large at one checkpoint and nothing elsewhere."""
    one = np.isclose(D, N * RATIOS[2])
    return np.where(one, 0.05, 0.0) if P == 8 else ratio(theta, N, D, P)


def nothing_at_eight(theta, N, D, P):
    return 0.0 if P == 8 else ratio(theta, N, D, P)


@pytest.mark.parametrize(
    ("law", "reason"), [(beyond_the_law, "law_misses_deltas"), (nothing_at_eight, "delta_not_significant")]
)
def test_deltas_that_are_zero_and_deltas_that_the_law_misses_are_not_confused(law, reason):
    rows, windows = table(np.random.default_rng(1), sizes=(80e3,), bits=(2, 3, 4, 8), delta=law, noise=0.02)
    critical = {c["bits"]: c for c in analyse(rows, windows, n_boot=50)["critical_tokens"]}
    assert critical[8.0]["predicted"] is None
    assert critical[8.0]["verdict_kind"] == "not_before"
    assert (critical[8.0]["reason"]["kind"], critical[8.0]["reason"]["bits"]) == (reason, 8.0)
