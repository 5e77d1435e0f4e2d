"""Contract and oracle: constants that are fixed, tied or bounded."""

import numpy as np
import pytest

from ptq_eval.errors import OptionError
from ptq_eval.laws import fit
from ptq_eval.laws.findings import Why
from ptq_eval.laws.fit.restrict import restrict
from ptq_eval.laws.formulas.chinchilla import Chinchilla
from ptq_eval.laws.formulas.kumar import KumarPTQ, KumarPTQRatio
from tests.laws.synthetic import KUMAR, KUMAR_LOSS, chinchilla, eq2, points

SIZES, RATIOS = (30e6, 60e6, 110e6, 220e6), (20, 60, 200)


@pytest.fixture
def data():
    return points(eq2, KUMAR, SIZES, RATIOS, (3, 4, 5), np.random.default_rng(0), scatter=0.03)


def test_nothing_restricted_is_the_law_itself():
    law = KumarPTQ()
    assert restrict(law) is law


def test_a_fixed_constant_stays_and_has_no_interval(data):
    result = fit(KumarPTQ(), data, fixed={"gamma_N": 0.3439}, n_boot=50)
    assert list(result.estimates) == ["C_T", "gamma_D", "gamma_N", "gamma_post"]
    assert result.estimates["gamma_N"].to_dict() == {"value": 0.3439, "low": None, "high": None}
    assert result.replicates.shape == (50, 4)
    assert np.all(result.replicates[:, 2] == 0.3439)
    assert result.equation.endswith("gamma_N = 0.3439 fixed")


def test_what_is_given_makes_the_others_surer(data):
    profiles = [fit(KumarPTQ(), data, fixed=f, intervals="profile") for f in ({"gamma_N": 0.3439}, {})]
    width = [np.log(r.estimates["C_T"].high / r.estimates["C_T"].low) for r in profiles]
    assert width[0] < 0.9 * width[1]


def test_tied_exponents_are_the_law_in_d_over_n(data):
    tied = fit(KumarPTQ(), data, tied=[("gamma_D", "gamma_N")], intervals="none")
    ratio = fit(KumarPTQRatio(), data, intervals="none")
    assert tied.values["gamma_D"] == tied.values["gamma_N"] == pytest.approx(ratio.values["gamma"], rel=1e-6)
    assert tied.objective == pytest.approx(ratio.objective, rel=1e-6)
    assert tied.aicc == pytest.approx(ratio.aicc, rel=1e-6)


def test_chinchilla_with_tied_exponents_as_the_paper_has_it():
    N, D = (axis.ravel() for axis in np.meshgrid(SIZES, [1.5e9, 3e9, 6e9, 13e9, 26e9]))
    loss = chinchilla(KUMAR_LOSS, N, D)
    result = fit(Chinchilla(), {"N": N, "D": D, "loss": loss}, tied=[("alpha", "beta")], intervals="none")
    assert result.values == pytest.approx(KUMAR_LOSS, rel=1e-4)


def test_one_size_is_enough_once_gamma_n_is_given(data):
    one = {name: column[data["N"] == SIZES[0]] for name, column in data.items()}
    assert not fit(KumarPTQ(), one).identified
    result = fit(KumarPTQ(), one, fixed={"gamma_N": 0.3439}, n_boot=20)
    assert result.status.kind == "ok"
    assert result.values["gamma_D"] == pytest.approx(KUMAR["gamma_D"], abs=0.05)


def test_an_undetermined_direction_is_named(data):
    one = {name: column[data["N"] == SIZES[0]] for name, column in data.items()}
    result = fit(KumarPTQ(), one, fixed={"gamma_D": 0.5068})
    assert result.status.reason.kind is Why.NOT_SEPARABLE
    assert result.status.reason.facts["constants"] == ["C_T", "gamma_N"]


def test_bounds_hold_and_are_named_where_they_bind(data):
    result = fit(KumarPTQ(), data, bounds={"gamma_D": (0.0, 0.4)}, n_boot=20)
    assert (result.status.kind, result.status.at_bound) == ("at_bound", ("gamma_D",))
    assert result.values["gamma_D"] == 0.4
    loose = fit(KumarPTQ(), data, bounds={"gamma_D": (0.0, 1.0)}, n_boot=20)
    assert loose.values == pytest.approx(fit(KumarPTQ(), data, n_boot=20).values, rel=1e-5)


@pytest.mark.parametrize("loss", ["huber", "log-lad", "squared"])
def test_a_restriction_never_improves_the_objective(data, loss):
    options = {"loss": loss, "sigma": 0.05, "intervals": "none"}
    free = fit(KumarPTQ(), data, **options).objective
    for more in ({"fixed": {"gamma_post": 0.6}}, {"tied": [("gamma_D", "gamma_N")]}, {"bounds": {"gamma_N": (0.4, 1)}}):
        assert fit(KumarPTQ(), data, **options, **more).objective >= free * (1 - 1e-9)


def test_derivatives_of_a_restricted_law_are_those_of_finite_differences(data):
    law = restrict(KumarPTQ(), fixed={"gamma_post": 0.59}, tied=[("gamma_N", "gamma_D")])
    theta = {"C_T": 0.06, "gamma_D": 0.4}
    for name, derivative in law.gradient(theta, data).items():
        step = 1e-5 * theta[name]
        up, down = (law.predict({**theta, name: theta[name] + s}, data) for s in (step, -step))
        np.testing.assert_allclose(derivative, (up - down) / (2 * step), rtol=1e-5)


def test_restrictions_add_up(data):
    fixed, tied = {"gamma_post": 0.59}, [("gamma_D", "gamma_N")]
    twice, once = restrict(restrict(KumarPTQ(), fixed), tied=tied), restrict(KumarPTQ(), fixed, tied)
    theta = {"C_T": 0.06, "gamma_D": 0.4}
    assert list(twice.complete(theta).items()) == list(once.complete(theta).items())
    np.testing.assert_array_equal(twice.predict(theta, data), once.predict(theta, data))
    assert twice.gradient(theta, data).keys() == once.gradient(theta, data).keys()
    results = [
        fit(restrict(KumarPTQ(), **first), data, n_boot=20, **then) for first, then in _in_either_order(fixed, tied)
    ]
    both = fit(KumarPTQ(), data, fixed=fixed, tied=tied, n_boot=20)
    for result in results:
        assert list(result.estimates) == ["C_T", "gamma_D", "gamma_N", "gamma_post"]
        assert result.values == pytest.approx(both.values, rel=1e-6)
        assert result.replicates.shape == both.replicates.shape


def _in_either_order(fixed, tied):
    return [({"fixed": fixed}, {"tied": tied}), ({"tied": tied}, {"fixed": fixed})]


@pytest.mark.parametrize(
    "wrong",
    [
        {"fixed": {"gamma": 1.0}},
        {"fixed": {"gamma_D": float("nan")}},
        {"fixed": {"C_T": 1.0, "gamma_D": 1.0, "gamma_N": 1.0, "gamma_post": 1.0}},
        {"tied": [("gamma_D", "beta")]},
        {"tied": [("gamma_D", "gamma_N", "C_T")]},
        {"tied": [("gamma_D", "gamma_N")], "fixed": {"gamma_D": 0.5, "gamma_N": 0.4}},
        {"tied": [("gamma_D", "gamma_N")], "bounds": {"gamma_D": (0.0, 0.1), "gamma_N": (0.2, 1.0)}},
        {"bounds": {"gamma_D": (1.0, 0.0)}},
        {"bounds": {"C_T": (0.0, 1.0)}},
    ],
)
def test_a_restriction_that_makes_no_sense_is_one_line(data, wrong):
    with pytest.raises(OptionError) as raised:
        fit(KumarPTQ(), data, **wrong)
    assert "\n" not in str(raised.value)
