"""Contract, property and recovery: what a fit says beside its constants, and what it does with bad data."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from ptq_eval.errors import OptionError
from ptq_eval.laws import Why, critical_tokens, fit
from ptq_eval.laws.findings import why
from ptq_eval.laws.fit import bootstrap
from ptq_eval.laws.fit.fit import minimum
from ptq_eval.laws.fit.solver import minimise, minimise_near, search_bounds
from ptq_eval.laws.formulas.chinchilla import Chinchilla
from ptq_eval.laws.formulas.kumar import KumarPTQ
from ptq_eval.laws.turning.predicted import predict
from tests.laws.synthetic import KUMAR, KUMAR_LOSS, chinchilla, eq2

SIZES, TOKENS, BITS = (30e6, 60e6, 110e6, 220e6), (1.5e9, 3e9, 6e9, 13e9, 26e9), (3.0, 4.0, 5.0, 6.0)


def paper(seed, tokens=TOKENS):
    """The paper's design, 20 runs: deltas with 3 % noise at four bit-widths, losses with 0.3 %."""
    rng = np.random.default_rng(seed)
    N, D, P = (axis.ravel() for axis in np.meshgrid(SIZES, tokens, BITS, indexing="ij"))
    run = np.array([f"{n:g} {d:g}" for n, d in zip(N, D)])
    delta = {"N": N, "D": D, "P": P, "run": run}
    delta["delta"] = eq2(KUMAR, N, D, P) * (1 + 0.03 * rng.normal(size=len(N)))
    loss = {name: delta[name][::4] for name in ("N", "D", "run")}
    loss["loss"] = chinchilla(KUMAR_LOSS, loss["N"], loss["D"]) * (1 + 0.003 * rng.normal(size=len(loss["N"])))
    return delta, loss


@pytest.mark.slow
def test_the_true_constants_and_d_crit_lie_in_their_intervals():
    """A lower limit with few replicates; 200 of them are in docs/log.md."""
    trials, hits = 25, dict.fromkeys([*KUMAR, *KUMAR_LOSS, "D_crit"], 0)
    true = critical_tokens(30e6, 3, constants=[KUMAR, KUMAR_LOSS])
    assert true < max(TOKENS)
    for seed in range(trials):
        data, curve = paper(seed)
        delta, loss = fit(KumarPTQ(), data, seed=seed), fit(Chinchilla(), curve, seed=seed)
        found = {
            **delta.estimates,
            **loss.estimates,
            "D_crit": predict(KumarPTQ(), delta, loss, {"N": 30e6, "P": 3.0})[0],
        }
        for name, value in {**KUMAR, **KUMAR_LOSS, "D_crit": true}.items():
            hits[name] += found[name].low <= value <= found[name].high
        assert delta.n_runs == 20
    assert min(hits.values()) >= 0.72 * trials, hits


@pytest.mark.slow
def test_a_range_of_tokens_that_is_too_short_gives_no_number():
    given_numbers = 0
    for seed in range(10):
        data, curve = paper(seed, tokens=(1.5e9, 1.6e9, 1.75e9))
        fits = fit(KumarPTQ(), data, seed=seed), fit(Chinchilla(), curve, seed=seed)
        found, reason = predict(KumarPTQ(), *fits, {"N": 30e6, "P": 3.0}, tokens=data["D"])
        given_numbers += found is not None
        assert (found is None) != (reason is None)
    assert given_numbers <= 1


@pytest.mark.parametrize(("which", "loss"), [(0, "huber"), (0, "squared"), (1, "huber"), (1, "log-huber")])
def test_refits_are_no_worse_than_those_of_l_bfgs_b(which, loss):
    law = (KumarPTQ(), Chinchilla())[which]
    solution = minimum(law, paper(0)[which], loss=loss)
    responses = bootstrap.resampled(solution, seed=0, n_boot=20)
    ours = bootstrap.refit(solution, responses)
    assert np.all(ours.converged)
    problem, scale = solution.problem, 1 / solution.objective

    def cost(point, response):
        r, slopes = (array[0] for array in problem.linearised(point[None], response))
        k = problem.loss.k
        return scale * float(problem.loss.rho(r).sum()), -scale * (slopes @ np.clip(r, -k, k))

    for response, value in zip(responses, ours.values):
        bounds = list(zip(*search_bounds(law)))
        done = minimize(cost, solution.point, (response,), jac=True, method="L-BFGS-B", bounds=bounds)
        assert value <= done.fun / scale * (1 + 1e-9)


@pytest.mark.parametrize(("which", "loss"), [(0, "huber"), (0, "squared"), (1, "huber"), (1, "log-huber")])
def test_the_tangent_only_shortens_the_way(which, loss):
    law = (KumarPTQ(), Chinchilla())[which]
    solution = minimum(law, paper(0)[which], loss=loss)
    problem, responses = solution.problem, bootstrap.resampled(solution, seed=0, n_boot=200)
    near = minimise_near(problem, responses, solution.point)
    far = minimise(problem, responses, np.tile(solution.point, (200, 1)))
    assert np.all(near.converged)
    assert np.all(near.values <= far.values * (1 + 1e-9))
    assert minimise_near(problem, responses[:0], solution.point).points.shape == (0, len(law.parameters))


def test_leverage_sums_to_the_constants_and_residuals_keep_the_rows_of_the_data():
    data, _ = paper(0)
    data["delta"][3], data["D"][5] = math.nan, 0.0
    result = fit(KumarPTQ(), data, loss="squared", intervals="none")
    assert result.residuals.shape == result.leverage.shape == (80,)
    assert np.flatnonzero(np.isnan(result.residuals)).tolist() == [3, 5]
    assert np.nansum(result.leverage) == pytest.approx(4)
    kept = np.isfinite(result.residuals)
    f = KumarPTQ().predict(result.values, {name: column[kept] for name, column in data.items()})
    assert np.array_equal(np.sign(result.residuals[kept]), np.sign(data["delta"][kept] - f))
    assert 0.5 * np.nansum(result.residuals**2) == pytest.approx(result.objective)


def test_aicc_of_squares_is_the_textbook_s_and_prefers_the_true_law():
    _, data = paper(0)
    result = fit(Chinchilla(), data, loss="squared", sigma=1.0, intervals="none")
    n, q = 20, 6
    variance = 2 * result.objective / n
    textbook = n * (math.log(2 * math.pi * variance) + 1) + 2 * q + 2 * q * (q + 1) / (n - q - 1)
    assert result.aicc == pytest.approx(textbook, rel=1e-9)
    scaled = fit(Chinchilla(), data, loss="squared", sigma=7.0, intervals="none")
    assert scaled.aicc == pytest.approx(result.aicc, rel=1e-6)
    wrong = fit(Chinchilla(), data, loss="squared", sigma=1.0, fixed={"beta": 0.9}, intervals="none")
    assert wrong.aicc > result.aicc + 2


def test_aicc_of_different_losses_refers_to_the_same_response():
    data, _ = paper(0)
    found = [fit(KumarPTQ(), data, loss=loss, intervals="none").aicc for loss in ("squared", "log-squared")]
    assert abs(found[0] - found[1]) < 3


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["huber", "log-huber", "lad"]))
def test_one_seed_one_result_and_never_worse_than_the_truth(seed, loss):
    rng = np.random.default_rng(seed)
    theta = {name: value * math.exp(0.1 * rng.normal()) for name, value in KUMAR.items()}
    data, _ = paper(seed)
    data["delta"] = eq2(theta, data["N"], data["D"], data["P"]) * np.exp(0.2 * rng.standard_t(3, size=80))
    one, again = (fit(KumarPTQ(), data, loss=loss, sigma=0.01, seed=seed, n_boot=5) for _ in range(2))
    assert one == again
    true = fit(KumarPTQ(), data, loss=loss, sigma=0.01, fixed={n: theta[n] for n in list(theta)[1:]}, intervals="none")
    assert one.objective <= true.objective * (1 + 1e-9)


def one_point(data):
    return {name: column[:1] for name, column in data.items()}


NO_POINTS = why(Why.TOO_FEW_POINTS, points=0, constants=4)
BAD = {
    "all negative": (
        lambda d: {**d, "delta": -d["delta"]},
        why(Why.TOO_FEW_CLEAR_DELTAS, clear=0, deltas=80, needed=4),
    ),
    "one point": (one_point, why(Why.TOO_FEW_POINTS, points=1, constants=4)),
    "one N": (lambda d: {**d, "N": np.full(80, 3e7)}, why(Why.TOO_FEW_VALUES, variable="N", distinct=1, needed=2)),
    "equal bits": (lambda d: {**d, "P": np.full(80, 4.0)}, why(Why.TOO_FEW_VALUES, variable="P", distinct=1, needed=2)),
    "nothing but NaN": (lambda d: {**d, "delta": np.full(80, math.nan)}, NO_POINTS),
    "zero N": (lambda d: {**d, "N": np.zeros(80)}, NO_POINTS),
    "negative D": (lambda d: {**d, "D": -d["D"]}, NO_POINTS),
    "infinite D": (lambda d: {**d, "D": np.full(80, math.inf)}, NO_POINTS),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("loss", ["huber", "log-huber", "lad"])
def test_bad_data_end_in_a_status(name, loss):
    change, reason = BAD[name]
    result = fit(KumarPTQ(), change(paper(0)[0]), loss=loss)
    assert not result.identified
    if not (name == "all negative" and loss == "log-huber"):
        assert result.status.reason == reason
    assert all(math.isnan(value) for value in result.values.values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: {k: v for k, v in d.items() if k != "N"}, "needs a column that the data lack"),
        (lambda d: {k: v for k, v in d.items() if k != "delta"}, "needs a column that the data lack"),
        (lambda d: {**d, "D": np.array(["much"] * 80)}, "column 'D' holds something that is not a number"),
        (lambda d: {**d, "D": d["D"][:7]}, "column 'D' has another length"),
        (lambda d: {**d, "D": d["D"].reshape(8, 10)}, "column 'D' has the wrong shape"),
    ],
)
def test_columns_that_cannot_be_used_are_named(change, words):
    with pytest.raises(OptionError, match=words) as raised:
        fit(KumarPTQ(), change(paper(0)[0]))
    assert "\n" not in str(raised.value)


def test_an_interval_nobody_knows_is_one_line():
    with pytest.raises(OptionError, match="unknown kind of interval"):
        fit(KumarPTQ(), paper(0)[0], intervals="wald")  # type: ignore[arg-type]
