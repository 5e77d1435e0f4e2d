"""A fit whose weights never settle takes the likeliest of those it passed, wherever the iteration stops."""

import importlib
from itertools import cycle

import numpy as np
import pytest

from ptq_eval.laws.formulas.kumar import KumarPTQRatio

module = importlib.import_module("ptq_eval.laws.fit.fit")


@pytest.mark.parametrize("scatters", [(0.1, 0.6), (0.6, 0.1)])
def test_weights_that_alternate_are_chosen_by_likelihood(monkeypatch, scatters):
    rng, n = np.random.default_rng(0), 24
    data = {"N": np.full(n, 1e6), "D": np.tile(np.geomspace(1e7, 1e9, 8), 3), "P": np.repeat([2.0, 3.0, 4.0], 8)}
    exact = KumarPTQRatio().predict({"C": 0.05, "gamma": 0.4, "gamma_post": 0.8}, data)
    data |= {"delta": exact * (1 + 0.1 * rng.standard_normal(n)), "run": np.full(n, "run")}
    alternating = cycle(scatters)
    monkeypatch.setattr(module, "tau_of", lambda *known: next(alternating))
    assert module.fit(KumarPTQRatio(), data, n_boot=0, intervals="none").scatter == 0.1
