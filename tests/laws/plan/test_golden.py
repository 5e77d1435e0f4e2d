"""Golden: the closed forms, with the constants that Kumar et al. print, to three digits."""

import numpy as np
import pytest

from ptq_eval.errors import OptionError, UnitsError
from ptq_eval.laws.formulas.presets import KUMAR_2024
from ptq_eval.laws.plan.answers import Planner, Question, plan
from ptq_eval.laws.plan.optimum import Budget, optimum
from ptq_eval.laws.plan.source import from_preset

D_CRIT = {
    30e6: {3: 16.4e9, 4: 88.6e9, 5: 479e9, 6: 2.59e12},
    220e6: {3: 32.4e9, 4: 175e9, 5: 948e9},
}


@pytest.mark.parametrize(("N", "bits", "tokens"), [(N, b, d) for N, of in D_CRIT.items() for b, d in of.items()])
def test_critical_tokens(N, bits, tokens):
    [answer] = plan(from_preset(KUMAR_2024), Question(params=N, serve_bits=(bits,))).of("critical_tokens")
    assert float(f"{answer.values['D'].value:.3g}") == tokens
    assert answer.values["tokens_per_param"].value == pytest.approx(answer.values["D"].value / N)
    assert "N" not in answer.beyond
    assert "bits" not in answer.beyond
    assert answer.beyond.get("D", 1.0) == pytest.approx(max(tokens / 26e9, 1.0), rel=0.01)


def test_precision_that_is_best_at_any_budget():
    [lower] = plan(from_preset(KUMAR_2024), Question(params=1e9)).of("lower")
    assert f"{lower.values['P'].value:.2f}" == "7.00"
    share = np.prod([1 - np.exp(n - 7.0021 / g) for g, n in ((2.6745, 0.3037), (2.2102, 1.4072), (0.9578, 2.4185))])
    full = np.prod([1 - np.exp(n - 16 / g) for g, n in ((2.6745, 0.3037), (2.2102, 1.4072), (0.9578, 2.4185))])
    assert lower.values["compute_share"].value == pytest.approx(7.0021 / share / (16 / full), rel=1e-5)


def test_precision_without_offsets_is_1_904_gammas():
    gamma = 1.9475
    tied = KUMAR_2024.replace(gamma_w=gamma, gamma_a=gamma, gamma_kv=gamma).without_offsets()
    planner = Planner(from_preset(tied), Question(params=1e9, tokens=2e10))
    assert planner.lower().values["P"].value / gamma == pytest.approx(1.90381, abs=1e-5)
    for compute in (1e18, 1e24):
        best = optimum(planner.grid.before, Budget(compute))
        assert best.P[0] / gamma == pytest.approx(1.90381, abs=1e-5)


def test_offset_moves_the_precision_to_the_root_of_its_equation():
    gamma, n = 1.9475, 0.8
    constants = {f"{name}_{part}": value for part in ("w", "a", "kv") for name, value in (("gamma", gamma), ("n", n))}
    P = Planner(from_preset(KUMAR_2024.replace(**constants)), Question(params=1e9)).lower().values["P"].value
    assert 3 * P / gamma == pytest.approx(np.exp(P / gamma - n) - 1, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("params", 1, UnitsError),
        ("params", 7, UnitsError),
        ("tokens", 300, UnitsError),
        ("memory", 80, UnitsError),
        ("budget", 21, UnitsError),
        ("budget", 1e60, UnitsError),
        ("params", 0, OptionError),
        ("params", -1e9, OptionError),
    ],
)
def test_counts_that_cannot_be_meant(name, value, error):
    with pytest.raises(error) as caught:
        Question(**{"params": 1e9, "tokens": 1e10, name: value})
    assert f"--{name}" in str(caught.value)
    assert "remedy" in str(caught.value)
