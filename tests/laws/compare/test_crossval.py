"""Contract and oracle: what is held out, and the errors on it."""

import json

import numpy as np
import pytest

from ptq_eval.errors import OptionError
from ptq_eval.laws import fit
from ptq_eval.laws.compare.crossval import held_out
from ptq_eval.laws.findings import Why
from ptq_eval.laws.formulas.chinchilla import Chinchilla
from ptq_eval.laws.formulas.kumar import KumarPTQ
from tests.laws.synthetic import KUMAR, chinchilla, eq2, points

SIZES, TOKENS, BITS = (30e6, 60e6, 110e6, 220e6), np.array([1.5e9, 3e9, 6e9, 13e9, 26e9]), (3.0, 4.0, 5.0, 6.0)


@pytest.fixture
def data():
    N, D, P = (axis.ravel() for axis in np.meshgrid(SIZES, TOKENS, BITS, indexing="ij"))
    noise = 1 + 0.03 * np.random.default_rng(0).normal(size=80)
    return {"N": N, "D": D, "P": P, "delta": eq2(KUMAR, N, D, P) * noise}


@pytest.mark.parametrize(("by", "values"), [("D", [(26e9,)]), ("N", [(220e6,)]), ("P", [(b,) for b in BITS])])
def test_an_end_or_one_bit_width_after_another_is_held_out(data, by, values):
    found = held_out(KumarPTQ(), data, by)
    assert [fold.values for fold in found.folds] == values
    assert found.status.kind == "ok"
    for fold in found.folds:
        assert np.all(np.isin(data[by][fold.rows], fold.values))
        assert fold.result.n_points == 80 - len(fold.rows)
    assert 0.02 < found.log_error < 0.06
    json.dumps(found.to_dict(), allow_nan=False)


def test_errors_are_those_of_a_fit_by_hand(data):
    keep = data["D"] < 26e9
    result = fit(KumarPTQ(), {name: column[keep] for name, column in data.items()}, intervals="none")
    rest = {name: column[~keep] for name, column in data.items()}
    gap = KumarPTQ().predict(result.values, rest) - rest["delta"]
    found = held_out(KumarPTQ(), data, "D")
    assert found.error == pytest.approx(np.sqrt(np.mean(gap**2)))
    assert found.bias == pytest.approx(np.mean(gap))
    assert found.n_held_out == 16


def test_a_wrong_law_extrapolates_worse(data):
    bent = {**data, "delta": data["delta"] * (1 + data["D"] / 5e9)}
    assert held_out(KumarPTQ(), bent, "D").log_error > 5 * held_out(KumarPTQ(), data, "D").log_error


def test_many_different_values_are_held_out_by_tenths():
    rng = np.random.default_rng(0)
    N, D = np.exp(rng.uniform(17, 22, 60)), np.exp(rng.uniform(21, 25, 60))
    theta = {"E": 1.8, "A": 400.0, "alpha": 0.35, "B": 2000.0, "beta": 0.37}
    found = held_out(Chinchilla(), {"N": N, "D": D, "loss": chinchilla(theta, N, D)}, "D", loss="log-huber")
    assert 6 <= found.n_held_out <= 10
    assert found.log_error < 1e-5


def test_what_cannot_be_split_says_why(data):
    one = {name: column[data["N"] == 30e6] for name, column in data.items()}
    reason = held_out(KumarPTQ(), one, "N").status.reason
    assert (reason.kind, reason.facts) == (Why.NOTHING_HELD_OUT, {"variable": "N", "distinct": 1})
    two = {name: column[data["P"] < 5] for name, column in data.items()}
    reason = held_out(KumarPTQ(), two, "P").status.reason
    assert (reason.kind, reason.facts["variable"]) == (Why.TOO_FEW_VALUES, "P")
    missing = held_out(Chinchilla(), {"N": one["N"], "D": one["D"], "loss": one["delta"]}, "P").status.reason
    assert (missing.kind, missing.facts) == (Why.COLUMN_MISSING, {"variable": "P"})
    with pytest.raises(OptionError):
        held_out(KumarPTQ(), data, "G")  # type: ignore[arg-type]


def test_sigma_and_windows_follow_their_rows():
    made = points(eq2, KUMAR, SIZES, (20, 60, 200), (3, 4, 5), np.random.default_rng(0), scatter=0.03)
    found = held_out(KumarPTQ(), made, "N", sigma=0.05 * np.abs(made["delta"]))
    assert found.status.kind == "ok"
    made["delta"][0] = np.nan
    assert held_out(KumarPTQ(), made, "N").n_held_out == 9
