"""The audit of methods against rounding: all errors of a difference, and control over the pairs."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ptq_eval.results.over_rounding import compared, holm


def pairs(**columns):
    values = {
        "delta": 0.3, "delta_rtn": 0.2, "delta_se": 0.1, "delta_se_rtn": 0.1, "over_rounding": 0.1,
        "over_rounding_se": 0.03, "delta_df": 20.0, "rounding_sd": 0.0, "rounding_sd_rtn": 0.0, "numerics_sd": 0.0,
    }  # fmt: skip
    n = max(len(np.atleast_1d(v)) for v in columns.values()) if columns else 1
    return pd.DataFrame({name: np.broadcast_to(v, n) for name, v in {**values, **columns}.items()})


def test_the_error_of_a_difference_contains_the_chance_of_both_roundings():
    [row] = compared(pairs(rounding_sd=0.04, rounding_sd_rtn=0.05, numerics_sd=0.01)).to_dict("records")
    assert row["error"] == pytest.approx(math.sqrt(0.03**2 + 0.04**2 + 0.05**2 + 0.01**2))
    freedom = 20 * (row["error"] / 0.03) ** 4
    assert row["p"] == pytest.approx(stats.t.sf(0.1 / row["error"], freedom))
    assert row["floor_known"]


def test_windows_alone_decide_where_the_floor_is_not_known():
    [row] = compared(pairs(rounding_sd=math.nan)).to_dict("records")
    assert row["error"] == pytest.approx(0.03)
    assert not row["floor_known"]


def test_few_degrees_of_freedom_need_more_errors():
    few, many = compared(pairs(delta_df=[2.0, 200.0]))["p"]
    assert few > 0.03 > many


def test_tables_of_earlier_versions_are_compared_as_if_independent():
    [row] = compared(pairs()[["delta", "delta_rtn", "delta_se", "delta_se_rtn"]]).to_dict("records")
    assert row["difference"] == pytest.approx(0.1)
    assert row["error"] == pytest.approx(math.hypot(0.1, 0.1))


def test_holms_procedure_on_its_textbook_case_and_without_unknown_ones():
    found = holm(np.array([0.01, 0.04, math.nan, 0.03, 0.005]))
    assert found == pytest.approx([0.03, 0.06, math.nan, 0.06, 0.02], nan_ok=True)


@pytest.mark.slow
def test_equal_methods_are_called_worse_in_at_most_five_of_a_hundred_reports():
    """Sixty pairs of equal methods, whose differences are the chance of windows and of two roundings."""
    rng, claims, reports, n = np.random.default_rng(0), 0, 400, 60
    shared = 0.05 * rng.standard_normal((reports, 1))  # the roundings of RTN, compared with several methods
    for report in range(reports):
        chi = rng.chisquare(20, n) / 20
        noise = 0.03 * rng.standard_normal(n) + 0.04 * rng.standard_normal(n) + shared[report]
        found = compared(
            pairs(over_rounding=noise, over_rounding_se=0.03 * np.sqrt(chi), rounding_sd=0.04, rounding_sd_rtn=0.05)
        )
        claims += bool((found["adjusted_p"] <= 0.05).any())
    assert claims / reports <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / reports)
    assert claims
