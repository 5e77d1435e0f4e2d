"""Recovery and contract: every fit says how far its points scatter, in the unit of the fit, and which that is."""

import math

import numpy as np
import pytest

import ptq_eval
from ptq_eval.laws.quality import Scatter

RNG = np.random.default_rng(1)
N, D = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e9, 10), np.geomspace(1e9, 1e11, 10)))
EXACT = 1.8 + 400 / N**0.34 + 2000 / D**0.37
NOISE = RNG.standard_normal(len(N))
LOSSES = ("huber", "squared", "lad", "log-huber", "log-squared", "log-lad", "least-squares")


@pytest.mark.parametrize("loss", LOSSES)
def test_the_scatter_is_recovered_under_every_loss(loss):
    absolute = loss == "least-squares"
    y = EXACT + 0.01 * NOISE if absolute else EXACT * (1 + 0.01 * NOISE)
    found = ptq_eval.fit_data({"N": N, "D": D, "loss": y}, "chinchilla", loss=loss, bootstrap=0)
    result, entry = found.results[0], found.fit["fits"][0]
    assert result.scatter == pytest.approx(0.01, rel=0.2)
    assert (result.scatter_kind is Scatter.RESPONSE) is absolute
    assert math.isfinite(result.tau) is (loss in LOSSES[:3])
    assert entry["scatter"] == result.scatter
    assert entry["scatter_kind"] == result.scatter_kind.value
    assert ("nats about the law" if absolute else "% about the law") in entry["message"]


def test_least_squares_and_logarithms_are_the_textbook_numbers():
    data = {"N": N, "D": D, "loss": EXACT + 0.01 * NOISE}
    plain = ptq_eval.fit_data(data, "chinchilla", loss="least-squares", bootstrap=0).results[0]
    assert plain.scatter == pytest.approx(math.sqrt(2 * plain.objective / (len(N) - 5)), rel=1e-6)
    logs = ptq_eval.fit_data(data, "chinchilla", loss="log-squared", bootstrap=0).results[0]
    assert logs.scatter == pytest.approx(math.sqrt(2 * logs.objective / (len(N) - 5)), rel=1e-6)


def test_known_errors_are_no_scatter():
    error = 0.02 * EXACT
    data = {"N": N, "D": D, "loss": EXACT + error * NOISE, "se": error}
    for loss in ("log-huber", "log-squared", "huber"):
        assert ptq_eval.fit_data(data, "chinchilla", loss=loss, bootstrap=0).results[0].scatter < 0.008


def test_a_formula_scatters_in_the_unit_of_its_response():
    data = {"x": np.arange(40.0), "score": 5 + 2 * np.arange(40.0) + NOISE[:40]}
    fit = ptq_eval.fit_data(data, formula="score = a + b*x", loss="least-squares", bootstrap=0).fit["fits"][0]
    assert fit["scatter"] == pytest.approx(1, rel=0.3)
    assert " of score about the law" in fit["message"]


def test_each_bit_width_has_its_own(tmp_path):
    P = np.tile([3.0, 4.0], len(N) // 2)
    exact = 0.05 * D**0.4 / N**0.3 * np.exp(-P / 0.6)
    delta = exact * (1 + np.where(P == 3, 0.02, 0.1) * NOISE)
    data = {"N": N, "D": D, "bits": P, "delta": delta}
    found = ptq_eval.fit_data(data, "ptq", loss="log-squared", bootstrap=0)
    three, four = (one["scatter"] for one in found.fit["fits"][0]["by_bits"])
    assert 0.01 < three < 0.05 < four < 0.15
    found.write(tmp_path)
    assert "–" not in (tmp_path / "report.md").read_text()
