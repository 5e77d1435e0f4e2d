"""Which deltas are marked as noise: their error and their noise floor are independent chances, which add in squares."""

import math

import numpy as np
import pandas as pd
import pytest

from ptq_eval.laws.quality import MAX_SCATTER, Scatter
from ptq_eval.report.common.tables import clear
from ptq_eval.report.common.words import scatter_text

N = 20_000


def points(delta, se, floor, **more):
    delta = np.atleast_1d(delta)
    return pd.DataFrame({"delta": delta, "delta_se": se, "delta_df": 1e9, "noise_floor": floor, **more})


@pytest.mark.parametrize("rounding", [0.0, 0.5, 1.0, 2.0])
def test_one_delta_in_twenty_is_clear_where_there_is_nothing_but_chance(rounding):
    """Beyond each alone would be up to 16 %."""
    rng = np.random.default_rng(0)
    delta = rng.standard_normal(N) + rounding * rng.standard_normal(N)
    assert clear(points(delta, 1.0, 2 * rounding)).mean() == pytest.approx(0.0455, abs=0.006)


def test_the_calibration_draw_counts_once():
    """An error of 3 from windows and 4 from draws, in the floor again beside roundings of 12: 13 in all."""
    found = clear(points([25.9, 26.1], 5.0, 2 * math.hypot(12, 4), calibration_se=4.0))
    assert list(found) == [False, True]


def test_without_a_floor_the_error_alone_counts():
    assert list(clear(points([1.9, 2.1], 1.0, math.nan))) == [False, True]
    assert list(clear(points([1.9, 2.1], 1.0, 0.0).drop(columns="noise_floor"))) == [False, True]


def test_a_scatter_at_its_limit_is_not_given_as_a_number():
    entry = {"scatter_kind": Scatter.WEIGHTS}
    assert scatter_text(entry, {"scatter": MAX_SCATTER}) == "over 1,000 %"
    assert scatter_text(entry, {"scatter": 0.9997 * MAX_SCATTER}) == "over 1,000 %"
    assert scatter_text(entry, {"scatter": 0.5}) == "50 %"
