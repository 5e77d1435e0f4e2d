"""Contract: how well a law describes its points, by bit-width; constants that get no interval, with the reason."""

import math

import numpy as np
import pytest

from ptq_eval.laws import FitStatus, Why, analyse, fit
from ptq_eval.laws.fit.diagnostics import r2_weighted
from ptq_eval.laws.formulas.kumar import KumarPTQ
from ptq_eval.report.common.words import message_text
from tests.laws.synthetic import KUMAR, eq2, table


def deltas(rng, sizes, scatter, noise=1e-4):
    """Equation 2, with a relative scatter for each bit-width."""
    axes = (sizes, np.geomspace(1e9, 3e10, 8), list(scatter))
    N, D, P = (g.ravel() for g in np.meshgrid(*axes, indexing="ij"))
    spread = np.array([scatter[p] for p in P])
    delta = eq2(KUMAR, N, D, P) * (1 + spread * rng.normal(size=len(N))) + noise * rng.normal(size=len(N))
    return {"N": N, "D": D, "P": P, "delta": delta, "se": np.full(len(N), noise), "run": N.astype(int).astype(str)}


def slow_weighted_r2(z, fitted, sigma):
    """Of every point as many copies as it has weight, without weights."""
    copies = np.round(1 / sigma**2).astype(int)
    z, fitted = np.repeat(z, copies), np.repeat(fitted, copies)
    return 1 - np.sum((z - fitted) ** 2) / np.sum((z - z.mean()) ** 2)


def test_weighted_r2_agrees_with_repeated_points():
    rng = np.random.default_rng(0)
    z, sigma = rng.normal(size=20), 1 / np.sqrt(rng.integers(1, 9, 20))
    fitted = z + 0.3 * rng.normal(size=20)
    assert r2_weighted(z, fitted, sigma) == pytest.approx(slow_weighted_r2(z, fitted, sigma))
    assert math.isnan(r2_weighted(np.ones(3), np.ones(3), np.ones(3)))


def test_one_bit_width_that_does_not_follow_the_law_is_seen_although_r2_is_high():
    data = deltas(np.random.default_rng(0), [3e7, 1e8, 3e8], {2.0: 0.02, 3.0: 0.02, 4.0: 0.02})
    four = data["P"] == 4
    data["delta"][four] = np.random.default_rng(1).permutation(data["delta"][four])
    found = fit(KumarPTQ(), data, n_boot=0)
    assert found.r2 > 0.95
    two, three, last = found.by_bits
    assert [one.bits for one in found.by_bits] == [2.0, 3.0, 4.0]
    assert [one.n_points for one in found.by_bits] == [24, 24, 24]
    assert min(two.r2, three.r2) > 0.9 > last.r2
    assert last.r2_weighted < 0.5 < two.r2_weighted
    assert last.scatter > 5 * max(two.scatter, three.scatter)
    assert found.r2_weighted < found.r2
    assert found.to_dict()["by_bits"][2] == pytest.approx(vars(last))


def test_the_scatter_of_each_bit_width_is_recovered():
    true = {2.0: 0.05, 3.0: 0.1, 4.0: 0.2}
    data = deltas(np.random.default_rng(2), [3e7, 6e7, 1e8, 2e8, 4e8], true, noise=1e-6)
    for one in fit(KumarPTQ(), data, n_boot=0).by_bits:
        assert one.scatter == pytest.approx(true[one.bits], rel=0.35)


@pytest.mark.parametrize("intervals", ["bootstrap", "profile"])
def test_two_sizes_give_no_interval_of_the_effect_of_size(intervals):
    scatter = {2.0: 0.02, 3.0: 0.02, 4.0: 0.02}
    two, three = (
        fit(KumarPTQ(), deltas(np.random.default_rng(0), sizes, scatter), n_boot=20, intervals=intervals)
        for sizes in ([3e7, 3e8], [3e7, 1e8, 3e8])
    )
    assert set(two.no_interval) == {"C_T", "gamma_N"}
    assert two.no_interval["C_T"].to_dict() == {"kind": Why.FEW_SIZES, "sizes": 2, "needed": 3}
    for name, estimate in two.estimates.items():
        assert math.isfinite(estimate.value)
        assert math.isnan(estimate.low) == (name in two.no_interval)
        assert not math.isnan(three.estimates[name].low)
    assert not three.no_interval


def test_a_constant_that_size_does_not_enter_keeps_its_interval():
    data = deltas(np.random.default_rng(0), [3e7, 3e8], {2.0: 0.02, 3.0: 0.02, 4.0: 0.02})
    fixed = fit(KumarPTQ(), data, n_boot=20, fixed={"gamma_N": 0.34})
    assert not fixed.no_interval
    assert not math.isnan(fixed.estimates["C_T"].low)
    assert fixed.status == FitStatus()


def test_the_report_says_why_there_is_no_interval():
    entry = analyse(*table(np.random.default_rng(0)), n_boot=10)["fits"][-1]
    assert entry["no_interval"]["gamma_N"] == {"kind": "few_sizes", "sizes": 2, "needed": 3}
    assert entry["parameters"]["gamma_N"]["low"] is None
    assert "no interval for C_T and gamma_N: 2 sizes of model, fewer than 3" in message_text(entry)
