"""Oracle and recovery: intervals by profile likelihood."""

import numpy as np
import pytest
from scipy import stats

from ptq_eval.laws import fit
from ptq_eval.laws.formulas.chinchilla import Chinchilla, ChinchillaD
from ptq_eval.laws.formulas.kumar import KumarPTQ
from tests.laws.synthetic import KUMAR, KUMAR_LOSS, RATIOS, chinchilla, eq2, points

D = np.geomspace(1e6, 1e9, 12)


def test_a_linear_constant_under_squares_has_student_s_interval():
    rng = np.random.default_rng(0)
    loss = 2 + 300 / D**0.4 + 0.01 * rng.normal(size=12)
    result = fit(
        ChinchillaD(),
        {"D": D, "loss": loss},
        loss="squared",
        sigma=1.0,
        fixed={"B": 300.0, "beta": 0.4},
        intervals="profile",
    )
    rest = loss - 300 / D**0.4
    half = stats.t.ppf(0.95, 11) * rest.std(ddof=1) / np.sqrt(12)
    expected = (rest.mean() - half, rest.mean() + half)
    assert (result.estimates["E"].low, result.estimates["E"].high) == pytest.approx(expected, rel=1e-5)
    assert result.covers.method == "profile"


def test_an_end_is_where_the_constrained_objective_has_risen_by_the_quantile():
    rng = np.random.default_rng(1)
    data = {"D": D, "loss": 2 + 300 / D**0.4 + 0.01 * rng.normal(size=12)}
    options = {"loss": "squared", "sigma": 0.01}
    result = fit(ChinchillaD(), data, **options, intervals="profile")
    rise = 0.5 * stats.t.ppf(0.95, 9) ** 2 * 2 * result.objective / 9
    for end in (result.estimates["beta"].low, result.estimates["beta"].high):
        held = fit(ChinchillaD(), data, **options, fixed={"beta": end}, intervals="none")
        assert held.objective - result.objective == pytest.approx(rise, rel=1e-3)


def test_an_end_at_a_bound_of_the_search_is_open():
    data = {"D": D, "loss": 2 + 300 / D**0.4 + 0.01 * np.random.default_rng(1).normal(size=12)}
    options = {"loss": "squared", "sigma": 0.01, "intervals": "profile"}
    free = fit(ChinchillaD(), data, **options).estimates["beta"]
    bounds = {"beta": ((free.low + free.value) / 2, 3.0)}
    found = fit(ChinchillaD(), data, **options, bounds=bounds).estimates["beta"]
    assert found.open == ("low",)
    assert found.high == pytest.approx(free.high, rel=1e-3)


@pytest.mark.parametrize("loss", ["huber", "log-huber", "log-lad"])
def test_profile_and_value_agree_on_the_side(loss):
    data = points(eq2, KUMAR, (3e7, 8e7, 2e8), RATIOS[::3], (3, 4, 5), np.random.default_rng(0), scatter=0.03)
    result = fit(KumarPTQ(), data, loss=loss, intervals="profile")
    for estimate in result.estimates.values():
        assert estimate.low < estimate.value < estimate.high
    assert result.n_boot == 0


@pytest.mark.slow
def test_profile_intervals_of_chinchilla_s_constants_cover():
    N, tokens = (axis.ravel() for axis in np.meshgrid([3e7, 6e7, 1.1e8, 2.2e8], [1.5e9, 3e9, 6e9, 13e9, 26e9]))
    hits = dict.fromkeys(KUMAR_LOSS, 0)
    for seed in range(24):
        noise = 1 + 0.003 * np.random.default_rng(seed).normal(size=20)
        data = {"N": N, "D": tokens, "loss": chinchilla(KUMAR_LOSS, N, tokens) * noise}
        found = fit(Chinchilla(), data, intervals="profile").estimates
        for name, true in KUMAR_LOSS.items():
            hits[name] += found[name].low <= true <= found[name].high
    assert min(hits.values()) >= 18, hits
