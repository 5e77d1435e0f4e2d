"""Oracle: slow independent solutions of the same problems."""

import numpy as np
import pytest
from scipy.optimize import brentq, minimize

from ptq_eval.laws import critical_tokens, fit
from ptq_eval.laws.formulas.chinchilla import Chinchilla, ChinchillaD
from ptq_eval.laws.formulas.kumar import KumarPTQ, KumarPTQRatio
from tests.laws.synthetic import KUMAR, KUMAR_LOSS, RATIO, RATIOS, chinchilla, eq2, points, ratio


def huber_sum(r, k):
    return sum(0.5 * x * x if abs(x) <= k else k * (abs(x) - k / 2) for x in r)


def brute(residual, centers, spreads, k, rng, tries=25):
    """The best of many L-BFGS-B runs from random places around the truth."""
    starts = [centers, *(centers + spreads * rng.normal(size=(tries, len(centers))))]
    runs = [minimize(lambda u: huber_sum(residual(u), k), start, method="L-BFGS-B") for start in starts]
    return min(run.fun for run in runs if np.isfinite(run.fun))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("loss", ["huber", "squared"])
def test_degradation_fit_is_no_worse_than_a_brute_force_search(seed, loss):
    rng = np.random.default_rng(seed)
    data = points(ratio, RATIO, [80e3], RATIOS[::2], (2, 3, 4), rng, scatter=0.3, noise=0.1)
    sigma = 0.01 + 0.2 * np.abs(data["delta"])
    result = fit(KumarPTQRatio(), data, sigma=sigma, loss=loss, n_boot=0)
    x = np.log(data["D"] / data["N"])

    def residual(u):
        return (data["delta"] - np.exp(u[0] + u[1] * x - data["P"] * np.exp(-u[2]))) / sigma

    truth = np.array([np.log(RATIO["C"]), RATIO["gamma"], np.log(RATIO["gamma_post"])])
    best = brute(residual, truth, np.array([0.5, 0.2, 0.3]), 1.345 if loss == "huber" else np.inf, rng)
    assert result.objective <= best * (1 + 1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_equation_2_fit_is_no_worse_than_a_brute_force_search(seed):
    rng = np.random.default_rng(seed)
    data = points(eq2, KUMAR, [3e7, 2e8], [20, 100, 500], (3, 4, 5), rng, scatter=0.3)
    sigma = 0.2 * np.abs(data["delta"])
    result = fit(KumarPTQ(), data, sigma=sigma, n_boot=0)
    a, b = np.log(data["D"] / 1e9), np.log(data["N"] / 1e8)

    def residual(u):
        return (data["delta"] - np.exp(u[0] + u[1] * a - u[2] * b - data["P"] * np.exp(-u[3]))) / sigma

    level = np.log(0.0598) + 0.5068 * np.log(1e9) - 0.3439 * np.log(1e8)
    truth = np.array([level, 0.5068, 0.3439, np.log(0.5907)])
    best = brute(residual, truth, np.array([0.5, 0.2, 0.2, 0.2]), 1.345, rng)
    assert result.objective <= best * (1 + 1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss_fit_is_no_worse_than_a_brute_force_search(seed):
    rng = np.random.default_rng(seed)
    D = np.geomspace(4e5, 6e7, 10)
    loss = 2 + 200 / D**0.4 + 0.01 * rng.normal(size=len(D))
    sigma = np.full(len(D), 0.01)
    result = fit(ChinchillaD(), {"D": D, "loss": loss}, sigma=sigma, n_boot=0)

    def residual(u):
        return (loss - u[0] - np.exp(u[1] - u[2] * np.log(D / 1e7))) / sigma

    best = brute(residual, np.array([2, np.log(200 / 1e7**0.4), 0.4]), np.array([0.3, 0.5, 0.1]), 1.345, rng)
    assert result.objective <= best * (1 + 1e-6)


@pytest.mark.parametrize("law", [KumarPTQ(), KumarPTQRatio(), Chinchilla(), ChinchillaD()])
def test_gradients_agree_with_finite_differences(law):
    data = points(eq2, KUMAR, [3e7, 2e8], [20, 100], (3, 4), np.random.default_rng(0))
    known = {**KUMAR, **RATIO, **KUMAR_LOSS}
    theta = {p.name: known[p.name] for p in law.parameters}
    for name, derivative in law.gradient(theta, data).items():
        step = 1e-5 * theta[name]
        up, down = (law.predict({**theta, name: theta[name] + s}, data) for s in (step, -step))
        np.testing.assert_allclose(derivative, (up - down) / (2 * step), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("P", [2, 3, 4, 6])
@pytest.mark.parametrize(("form", "theta"), [(eq2, KUMAR), (ratio, RATIO)])
def test_d_crit_is_the_minimum_of_the_quantized_loss(form, theta, P):
    N = 30e6

    def slope(log_D, h=1e-4):
        def loss(x):
            return chinchilla(KUMAR_LOSS, N, np.exp(x)) + form(theta, N, np.exp(x), P)

        return (loss(log_D + h) - loss(log_D - h)) / (2 * h)

    root = np.exp(brentq(slope, np.log(1e6), np.log(1e14)))
    assert critical_tokens(N, P, constants=[theta, KUMAR_LOSS]) == pytest.approx(root, rel=1e-3)
