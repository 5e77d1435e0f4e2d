"""Contract: standard errors, learning rates, runs and sizes of values in a table are checked, and said by row."""

import numpy as np
import pytest

from ptq_eval import errors
from ptq_eval.laws.catalogue import law_for
from ptq_eval.laws.compare.candidate import weights
from ptq_eval.laws.findings import Why
from ptq_eval.laws.fit.fit import fit
from ptq_eval.laws.fit.losses import make_loss
from ptq_eval.laws.fit.requirements import clean, require, standard_errors
from ptq_eval.laws.formulas.chinchilla import Chinchilla
from ptq_eval.laws.formulas.kumar import KumarPTQ
from ptq_eval.laws.formulas.n_eff import NEff
from ptq_eval.laws.formulas.phase import KumarPhase, PhasePTQ
from ptq_eval.laws.formulas.sun import Sun
from ptq_eval.laws.tables.external import map_columns
from ptq_eval.report.common.words import reason_text


@pytest.fixture
def table():
    N, D, P = (g.ravel() for g in np.meshgrid([3e7, 6e7, 1e8], [1e9, 4e9, 16e9], [3.0, 4.0], indexing="ij"))
    return {"N": N, "D": D, "bits": P, "delta": 1e-3 * D**0.3 * np.exp(-P), "loss": 2 + 1e3 / N**0.4 + 1e3 / D**0.4}


@pytest.fixture
def schedule(table):
    """Every size is one run whose rate decays from 1e-3 to zero."""
    rates = {1e9: 1e-3, 4e9: 5e-4, 16e9: 0.0}
    names = np.array([f"r{n:g}" for n in table["N"]], object)
    return {**table, "run": names, "lr": np.array([rates[d] for d in table["D"]])}


@pytest.mark.parametrize("column", ["se", "delta_se"])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (0.0, errors.NotPositiveError),
        (-0.1, errors.NotPositiveError),
        (np.inf, errors.NotFiniteError),
        (np.nan, errors.NotFiniteError),
        ("x", errors.TextColumnError),
    ],
)
def test_a_standard_error_that_is_none_is_refused_by_row(table, column, value, error):
    values = np.full(18, 0.1, object)
    values[4] = value
    with pytest.raises(error) as raised:
        map_columns(KumarPTQ(), {**table, column: values}, {})
    assert column in str(raised.value)
    assert "in row 5" in str(raised.value)
    with pytest.raises(error):
        map_columns(KumarPTQ(), {**table, "error": values}, {column: "error"})


def test_errors_that_nobody_knows_are_noted(table):
    found = map_columns(KumarPTQ(), {**table, "se": np.full(18, np.nan)}, {})
    assert "se" not in found.data
    assert any("`se` is blank in every row" in note for note in found.notes)


def test_a_point_without_its_error_weighs_no_more_than_others(table):
    assert standard_errors([0.1, np.nan, 0.0, -1.0, np.inf, 0.3]).tolist() == [0.1, 0.3, 0.3, 0.3, 0.3, 0.3]
    assert standard_errors([np.nan, 0.0]).tolist() == [0.0, 0.0]
    data = map_columns(KumarPTQ(), table, {}).data
    data["se"] = np.append(np.full(17, 0.01), np.nan)
    assert clean(KumarPTQ(), data, None, make_loss("huber", None))[0]["se"][-1] == 0.01
    found = fit(KumarPTQ(), {**data, "se": np.append(np.full(17, 1e-6), np.nan)}, intervals="none")
    sigma = weights(KumarPTQ(), found, data)
    assert sigma[-1] == pytest.approx(np.hypot(0.01, found.scatter * data["delta"][-1]))


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (-1.0, errors.NotPositiveError, "lr is negative | got -1 in row 5"),
        (np.inf, errors.NotFiniteError, "lr is infinite"),
        ("abc", errors.TextColumnError, "lr holds text | got 'abc' in row 5"),
    ],
)
def test_a_learning_rate_that_is_none_is_refused(schedule, value, error, said):
    schedule["lr"] = schedule["lr"].astype(object)
    schedule["lr"][4] = value
    with pytest.raises(error) as raised:
        map_columns(KumarPTQ(), schedule, {}, needed=("delta",))
    assert said in str(raised.value)


@pytest.mark.parametrize("law", [PhasePTQ(), KumarPhase()])
def test_the_phase_follows_from_learning_rates(schedule, law):
    found = map_columns(law, schedule, {})
    assert dict(zip(schedule["D"], found.data["S"])) == {1e9: 1.0, 4e9: 1.5, 16e9: 2.0}
    assert len(set(found.data["run"])) == 3


def test_a_phase_that_nothing_tells_is_refused(schedule, table):
    with pytest.raises(errors.ColumnError, match="learning_rate=COLUMN, phase=COLUMN or S=COLUMN"):
        map_columns(PhasePTQ(), table, {})
    alone = {name: values for name, values in schedule.items() if name != "run"}
    with pytest.raises(errors.NotFiniteError, match="name the runs"):
        map_columns(KumarPhase(), alone, {})
    with pytest.raises(errors.TextColumnError, match=r"got 'bogus' in row 1 and 17 more .*annealed"):
        map_columns(KumarPhase(), {**schedule, "phase": np.full(18, "bogus", object)}, {})
    labels = np.where(table["D"] > 2e9, "annealed", "constant").astype(object)
    assert set(map_columns(PhasePTQ(), {**table, "phase": labels}, {}).data["S"]) == {1.0, 2.0}


def test_a_model_trained_in_another_precision_is_another_run(table):
    def runs(law, more, **options):
        found = map_columns(law, {**table, **more}, {}, **options)
        return len(set(found.data["run"])), found.notes[0]

    trained = {"P_w": np.tile([4.0, 8.0], 9)}
    assert runs(NEff(("weights",)), trained)[0] == 18
    assert "(N, D, P_w)" in runs(NEff(("weights",)), trained)[1]
    assert runs(law_for("n_eff", table), {})[0] == 18  # bits alone are those of training
    assert runs(Chinchilla(), trained)[0] == 18  # so that runs of two laws are the same
    assert runs(Chinchilla(), {"weights": trained["P_w"]})[0] == 18
    assert runs(Chinchilla(), {"weights": np.linspace(0, 1, 18)})[0] == 9  # no bits
    assert runs(KumarPTQ(), {})[0] == 9  # served at two widths, trained once
    assert runs(PhasePTQ(), {}, needed=("delta",))[0] == 9  # D tells runs apart in a law without D
    formats = {"E_bits": np.tile([2.0, 4.0], 9), "M_bits": np.tile([1.0, 3.0], 9), "B_g": np.full(18, 32.0)}
    assert runs(Sun(), formats)[0] == 18


def test_a_blank_name_of_a_run_is_refused_and_a_blank_column_noted(table):
    found = map_columns(KumarPTQ(), {**table, "run": np.full(18, np.nan)}, {})
    assert len(set(found.data["run"])) == 9
    assert "the column `run` is blank" in found.notes[0]
    names = np.full(18, "a", object)
    names[6] = None
    with pytest.raises(errors.NotFiniteError, match=r"run is blank in some rows . got row 7 . .* another name"):
        map_columns(KumarPTQ(), {**table, "run": names}, {})


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (
            {"bits": 300.0},
            errors.BitsError,
            "P = bits is too large for a number of bits | got 300 in row 1",
        ),
        ({"delta": True}, errors.TextColumnError, "delta holds true and false"),
        ({"delta": 1e300}, errors.UnitsError, "delta is too large for a number of nats per token"),
    ],
)
def test_values_that_cannot_be_are_refused(table, change, error, said):
    changed = {name: np.full(18, value) for name, value in change.items()}
    with pytest.raises(error) as raised:
        map_columns(KumarPTQ(), {**table, **changed}, {})
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("law", "said"),
    [
        (Chinchilla(), "so A and alpha can be traded off against B and beta"),
        (KumarPTQ(), "so gamma_N can be traded off against gamma_D"),
    ],
)
@pytest.mark.parametrize("wobble", [0.0, 0.02])
def test_tokens_in_step_with_parameters_are_refused(law, said, wobble):
    N = np.repeat(np.geomspace(3e7, 1e9, 20), 4)
    D = 20 * N * (1 + wobble * np.random.default_rng(0).uniform(-1, 1, 20).repeat(4))
    bits = np.tile([3.0, 4.0, 5.0, 6.0], 20)
    table = {"N": N, "D": D, "bits": bits, "delta": 1e-3 * D**0.3 * np.exp(-bits), "loss": 2 + 1e3 / N**0.4}
    data, said = map_columns(law, table, {}).data, f"N and D are never more than 5 % off one power law, {said}"
    with pytest.raises(errors.NotVaryingError) as raised:
        require(law, data)
    assert said in str(raised.value)
    assert reason_text(fit(law, data, intervals="none").status.reason.to_dict()) == said


def test_a_direction_is_named_by_its_constants_and_not_by_bits():
    """Three variables in step: no pair of them is, and the rank of the derivatives says it."""
    N, P = (g.ravel() for g in np.meshgrid([3e7, 6e7, 1e8, 2e8], [3.0, 4.0, 5.0], indexing="ij"))
    D = 20 * N * np.exp(0.5 * P)
    data = {"N": N, "D": D, "P": P, "delta": D**0.4 * np.exp(-P)}
    reason = fit(KumarPTQ(), data, intervals="none").status.reason
    assert reason.kind is Why.NOT_SEPARABLE
    assert (reason.facts["constants"], reason.facts["variable"]) == (["gamma_D", "gamma_N"], None)


def test_a_format_without_mantissa_bits_is_a_format():
    axes = ([4e7, 1e8, 7e8], [1e10, 3e10, 1e11], [1.0, 2.0, 3.0], [0.0, 1.0, 2.0])
    N, D, E, M = (g.ravel() for g in np.meshgrid(*axes, indexing="ij"))
    law, theta = Sun(), {"E": 1.9, "A": 69.0, "alpha": 0.24, "B": 69000.0, "beta": 0.52}
    theta |= {"gamma": 11000.0, "delta": 3.2, "nu": 2.9}
    table = {"N": N, "D": D, "E_bits": E, "M_bits": M, "B_g": np.full(81, 128.0)}
    table["loss"] = law.predict(theta, table)
    found = fit(law, map_columns(law, table, {}).data, intervals="none")
    assert found.n_points == 81
    assert found.values["nu"] == pytest.approx(2.9, rel=0.02)
    with pytest.raises(errors.NotPositiveError, match="M_bits is negative"):
        map_columns(law, {**table, "M_bits": M - 1}, {})
    with pytest.raises(errors.NotPositiveError, match="E_bits is zero or negative"):
        map_columns(law, {**table, "E_bits": E - 1}, {})


def test_a_rate_that_the_law_does_not_read_is_noted_and_left_out(schedule):
    table = {**schedule, "lr": np.full(len(schedule["N"]), "3e-4 cosine")}
    mapped = map_columns(KumarPTQ(), table, {})
    assert any("learning rates are not used: lr holds text" in note for note in mapped.notes)
    with pytest.raises(errors.TextColumnError):
        map_columns(KumarPTQ(), table, {"learning_rate": "lr"})


@pytest.mark.parametrize("spread", [0.2, 0.4])
@pytest.mark.parametrize("seed", range(3))
def test_a_design_that_nearly_follows_the_optimum_is_fitted(spread, seed):
    """D = 20·N times e^±spread: N and D are nearly proportional, and the curvature by N is no scatter by D."""
    law, rng = Chinchilla(), np.random.default_rng(seed)
    N = np.repeat(np.geomspace(3e7, 3e9, 8), 3)
    data = {"N": N, "D": 20 * N * np.exp(spread * np.tile([-1, 0, 1], 8))}
    truth = {"A": 4299.0, "alpha": 0.4965, "B": 18060.0, "beta": 0.4965, "E": 2.7648}
    data["loss"] = law.predict(truth, data) * np.exp(1e-5 * rng.standard_normal(24))
    found = fit(law, data, intervals="none")
    assert found.status.kind == "ok"
    assert found.values["beta"] == pytest.approx(0.4965, rel=0.05)
    data["loss"] = law.predict({**truth, "B": 1e-12}, data) * np.exp(1e-3 * rng.standard_normal(24))
    assert fit(law, data, intervals="none").status.reason.kind is Why.LOSS_DOES_NOT_FALL
