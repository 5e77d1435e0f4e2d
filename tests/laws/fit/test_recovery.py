"""Recovery: constants put in come out, and 90 % intervals cover them about 90 % of the time."""

import numpy as np
import pytest

from ptq_eval.laws import analyse, critical_tokens, fit
from ptq_eval.laws.formulas.chinchilla import Chinchilla, ChinchillaD
from ptq_eval.laws.formulas.kumar import KumarPTQ, KumarPTQRatio
from tests.laws.synthetic import KUMAR, KUMAR_LOSS, RATIO, RATIOS, SMALL_LOSS, chinchilla, eq2, points, ratio, table

SIZES = np.array([30e6, 60e6, 110e6, 220e6])
TOKENS = np.array([1.5e9, 3e9, 6e9, 13e9, 26e9])


def coverage(law, form, theta, trials, **how):
    hits = dict.fromkeys(theta, 0)
    for seed in range(trials):
        data = points(form, theta, rng=np.random.default_rng(seed), **how)
        result = fit(law, data, seed=seed)
        for name, true in theta.items():
            hits[name] += result.estimates[name].low <= true <= result.estimates[name].high
    return {name: hit / trials for name, hit in hits.items()}


def test_equation_2_is_recovered_exactly_without_noise():
    data = points(eq2, KUMAR, SIZES, [50, 100, 200, 400], (3, 4, 5, 6), np.random.default_rng(0), noise=0.0)
    result = fit(KumarPTQ(), data)
    assert result.status.kind == "ok"
    assert result.values == pytest.approx(KUMAR, rel=1e-6)
    assert result.r2 == pytest.approx(1.0)


def test_ratio_form_is_recovered_through_noise_with_negative_deltas():
    data = points(ratio, RATIO, [80e3], RATIOS, (2, 3, 4, 8), np.random.default_rng(1), noise=0.05, scatter=0.05)
    data["delta"][np.argmin(data["delta"])] = -abs(data["delta"]).min()
    assert np.any(data["delta"] < 0)
    result = fit(KumarPTQRatio(), data)
    assert result.n_points == 40
    assert result.n_dropped == 0
    assert result.values["gamma"] == pytest.approx(RATIO["gamma"], abs=0.05)
    assert result.values["gamma_post"] == pytest.approx(RATIO["gamma_post"], rel=0.03)


def test_chinchilla_and_its_one_size_form_are_recovered():
    N, D = (axis.ravel() for axis in np.meshgrid(SIZES, TOKENS))
    loss = chinchilla(KUMAR_LOSS, N, D)
    result = fit(Chinchilla(), {"N": N, "D": D, "loss": loss}, n_boot=0)
    assert result.values == pytest.approx(KUMAR_LOSS, rel=1e-4)
    one = SIZES[0] == N
    single = fit(ChinchillaD(), {"D": D[one], "loss": loss[one]}, n_boot=0).values
    assert single["E"] == pytest.approx(2.7648 + 4.299e3 / SIZES[0] ** 0.4965, rel=1e-4)
    assert single["beta"] == pytest.approx(0.4965, rel=1e-3)


@pytest.mark.parametrize("kind", ["scatter", "by_checkpoint"])
@pytest.mark.slow
def test_one_run_intervals_cover_scatter_of_points_and_of_checkpoints(kind):
    how = {"sizes": [80e3], "ratios": RATIOS, "bits": (2, 3, 4, 8), kind: 0.1}
    for name, share in coverage(KumarPTQRatio(), ratio, RATIO, 60, **how).items():
        assert share >= 0.82, (name, share)  # intervals that are a tenth too narrow miss it


@pytest.mark.parametrize("n_runs", [4, 8])
@pytest.mark.slow
def test_intervals_over_runs_cover_differences_between_runs(n_runs):
    how = {"sizes": np.geomspace(3e7, 3e8, n_runs), "ratios": RATIOS[::2], "bits": (2, 3, 4)}
    for name, share in coverage(KumarPTQ(), eq2, KUMAR, 40, scatter=0.03, by_run=0.1, **how).items():
        assert share >= 0.8, (name, share)  # 8 runs with intervals a tenth too narrow, 4 with a fifth, miss it


@pytest.mark.slow
def test_critical_tokens_are_covered_by_the_joint_bootstrap():
    trials, hits = 25, np.zeros((2, 4))  # intervals of 0.6 of their width miss the limit, as with 40
    for seed in range(trials):
        rows, windows = table(np.random.default_rng(seed))
        critical = analyse(rows, windows, seed=seed)["critical_tokens"]
        for index, found in enumerate(critical):
            true = critical_tokens(found["params"], found["bits"], constants=[RATIO, SMALL_LOSS])
            said = found["predicted"]  # None where it is withheld
            hits[divmod(index, 4)] += said is not None and said["low"] <= true <= said["high"]
    assert np.all(hits >= 0.8 * trials), hits
