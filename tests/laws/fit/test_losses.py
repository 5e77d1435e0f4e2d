"""Golden and oracle: the losses, and Epoch's 240 points (arXiv 2404.10102) fitted under each of them."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from ptq_eval.errors import OptionError
from ptq_eval.laws import fit
from ptq_eval.laws.fit.losses import NAMES, huber, huber_weight, make_loss
from ptq_eval.laws.fit.search import polish
from ptq_eval.laws.fit.solver import Problem, to_search, to_theta
from ptq_eval.laws.formulas.chinchilla import Chinchilla
from ptq_eval.report.common.words import message_text
from tests.laws.synthetic import KUMAR_LOSS, chinchilla

POINTS = Path(os.environ.get("PTQ_EVAL_EPOCH_DATA", ""))
needs_points = pytest.mark.skipif(not POINTS.is_file(), reason="PTQ_EVAL_EPOCH_DATA does not name the 240 points")


def epoch():
    with POINTS.open(encoding="utf-8", newline="") as handle:
        rows = sorted(csv.DictReader(handle), key=lambda row: float(row["loss"]))[:-5]
    N, C, loss = (np.array([float(row[name]) for row in rows]) for name in ("Model Size", "Training FLOP", "loss"))
    return {"N": N, "D": C / (6 * N), "loss": loss}


def losses_of(seed, n=40, scatter=0.02):
    rng = np.random.default_rng(seed)
    N, D = np.exp(rng.uniform(17, 22, n)), np.exp(rng.uniform(21, 25, n))
    return {"N": N, "D": D, "loss": chinchilla(KUMAR_LOSS, N, D) * np.exp(scatter * rng.standard_t(3, size=n))}


@needs_points
def test_the_published_minimum_of_the_log_huber_loss_is_reached():
    result = fit(Chinchilla(), epoch(), loss="log-huber", intervals="none")
    assert result.n_points == 240
    assert result.huber_delta == 1e-3
    assert result.objective <= 0.0010182741
    expected = {"E": 1.8172, "A": 477.83, "alpha": 0.3473, "B": 2143.4, "beta": 0.3672}
    assert result.values == pytest.approx(expected, rel=1e-4)


@needs_points
def test_least_absolute_deviation_gives_the_published_constants():
    result = fit(Chinchilla(), epoch(), loss="log-lad", intervals="none")
    assert [round(result.values[name], 4) for name in ("E", "alpha", "beta")] == [1.8169, 0.3478, 0.3659]
    assert result.values["A"] == pytest.approx(482.01, abs=0.01)
    assert result.values["B"] == pytest.approx(2085.43, abs=0.01)
    data, law = epoch(), Chinchilla()
    published = to_search(law, {"E": 1.8169, "A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658})
    problem = Problem(law, data, np.ones(240), make_loss("log-lad"))
    assert result.objective <= problem.values(published[None], np.log(data["loss"]))[0]


@pytest.mark.parametrize("seed", range(4))
def test_absolute_deviations_leave_as_many_zeros_as_constants_and_no_direction_goes_down(seed):
    """Oracle: at a minimum the linear program of the linearised law finds no step that gains."""
    data, law = losses_of(seed), Chinchilla()
    result = fit(law, data, loss="log-lad", intervals="none")
    assert np.sum(np.abs(result.residuals) < 1e-7) >= 5 - len(result.status.at_bound)
    problem, z = Problem(law, data, np.ones(40), make_loss("log-lad")), np.log(data["loss"])
    rng, point = np.random.default_rng(seed), to_search(law, result.values)
    for _ in range(200):
        near = point + rng.normal(size=5) * 10 ** rng.uniform(-6, -1)
        assert problem.values(near[None], z)[0] >= result.objective * (1 - 1e-9)
    again = polish(problem, z, point + 1e-4)
    assert problem.values(again[None], z)[0] == pytest.approx(result.objective, rel=1e-6)


def test_a_linear_law_under_absolute_deviations_is_a_linear_program():
    data = losses_of(1)
    given_exponents = {"alpha": 0.4965, "beta": 0.4965}
    result = fit(Chinchilla(), data, loss="lad", sigma=1.0, fixed=given_exponents, intervals="none")
    X = np.column_stack([np.ones(40), data["N"] ** -0.4965, data["D"] ** -0.4965])
    size, y, eye = np.linalg.norm(X, axis=0), data["loss"], np.eye(40)
    cost = np.concatenate([np.zeros(3), np.ones(40)])
    A_ub = np.block([[X / size, -eye], [-X / size, -eye]])
    done = linprog(cost, A_ub=A_ub, b_ub=np.concatenate([y, -y]), bounds=[(None, None)] * 3 + [(0, None)] * 40)
    assert result.objective == pytest.approx(done.fun, rel=1e-9)


@pytest.mark.parametrize("loss", NAMES)
def test_every_loss_reaches_an_objective_no_worse_than_that_of_the_truth(loss):
    for seed in range(3):
        data, law = losses_of(seed), Chinchilla()
        result = fit(law, data, loss=loss, sigma=0.02, intervals="none")
        problem = Problem(law, data, np.full(40, 0.02), make_loss(loss))
        z = problem.loss.transform(data["loss"])
        assert result.objective <= problem.values(to_search(law, KUMAR_LOSS)[None], z)[0]
        assert np.sum(problem.loss.rho(result.residuals)) == pytest.approx(result.objective, rel=1e-9)


def test_a_logarithmic_loss_counts_what_has_no_logarithm():
    data = losses_of(0)
    data["loss"][:2] = [-1.0, 0.0]
    result = fit(Chinchilla(), data, loss="log-squared", intervals="none")
    assert (result.n_dropped, result.n_points) == (2, 38)
    assert result.n_undefined == 2
    assert "2 values are not positive and have no logarithm" in message_text(result.to_dict())


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=9), st.sampled_from(NAMES), st.floats(1e-4, 1e4))
def test_the_total_is_the_sum_of_the_costs(values, name, k):
    loss, r = make_loss(name, k if name.endswith("huber") else None), np.array(values)
    assert float(loss.total(r)) == pytest.approx(float(np.sum(loss.rho(r))), rel=1e-6, abs=1e-6 * k)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=9), st.floats(1e-4, 1e4), st.floats(0, 1e9))
def test_the_parts_of_hubers_loss_are_its_derivative_and_a_damped_weight(values, k, damping):
    loss, r = make_loss("huber", k), np.array([values])
    total, psi, weight = loss.parts(r, np.array([damping]))
    assert total == loss.total(r)
    assert psi == pytest.approx(r * huber_weight(r, k))
    assert weight == pytest.approx(np.where(np.abs(r) <= k, 1.0, min(damping, 1.0) * huber_weight(r, k)))


@given(st.floats(-50, 50), st.floats(1e-3, 10))
def test_huber_lies_between_its_limits(r, k):
    r = np.array([r])
    assert huber(r, k) <= k * np.abs(r) + 1e-12
    assert huber(r, 1e-9) / 1e-9 == pytest.approx(np.abs(r), abs=1e-8)
    assert huber_weight(r, k) * np.abs(r) == pytest.approx(np.minimum(np.abs(r), k))


def test_a_law_in_other_constants_goes_through_the_same_search_coordinates():
    theta = {name: float(v[0]) for name, v in to_theta(Chinchilla(), to_search(Chinchilla(), KUMAR_LOSS)).items()}
    assert theta == pytest.approx(KUMAR_LOSS)


@pytest.mark.parametrize("wrong", [("cauchy", None), ("huber", 0.0), ("log-huber", -1.0), ("huber", float("nan"))])
def test_a_wrong_loss_is_one_line(wrong):
    with pytest.raises(OptionError):
        make_loss(*wrong)
