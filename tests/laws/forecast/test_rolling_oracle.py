"""Oracle: weights of the rolling origin and the falling power, against slow implementations of what they say."""

import math

import numpy as np
import pytest

from ptq_eval.laws.forecast.candidates import DECAYS, History, fit_falling
from ptq_eval.laws.forecast.rolling import MIN_DISTANCE, MIN_HISTORY, PRIOR_COUNT, Response, combine


def still(history):
    return lambda x: np.full_like(x, history.y[-1])


def line(history):
    slope = (history.y[-1] - history.y[0]) / (history.x[-1] - history.x[0])
    return lambda x: history.y[-1] + slope * (x - history.x[-1])


def late(history):
    """Known from five checkpoints on."""
    return line(history) if len(history.x) >= 5 else None


CANDIDATES = {"still": still, "line": line, "late": late}


def curves(history):
    found = {name: candidate(history) for name, candidate in CANDIDATES.items()}
    return {name: curve for name, curve in found.items() if curve is not None}


def slow(histories, prior, logarithmic):
    """Weights and error as the module's docstring has them, one target at a time."""
    squares = []
    for h in histories:
        for j in range(MIN_HISTORY, len(h.x)):
            known = curves(History(h.x[:j], h.y[:j], h.noise[:j], h.phase[:j]))
            rise = [
                abs(c(np.array([h.x[j - 1] + 0.2]))[0] - c(np.array([h.x[j - 1] - 0.2]))[0]) for c in known.values()
            ]
            steep = float(np.mean(rise)) / 0.4
            for k in range(j, len(h.x)):
                distance = max(h.x[k] - h.x[j - 1], MIN_DISTANCE)
                chance, row = h.noise[k] ** 2 + h.noise[j - 1] ** 2, {}
                for name, curve in known.items():
                    said = curve(np.array([h.x[k]]))[0]
                    if logarithmic:
                        floor = 2 * h.noise[k] + 1e-12
                        error = math.log(max(h.y[k], floor)) - math.log(max(said, floor))
                        excess = error**2 - chance / max(h.y[k], floor) ** 2
                        row[name] = max(excess, 0) / distance**2
                    else:
                        row[name] = max((h.y[k] - said) ** 2 - chance, 0) / (distance * steep) ** 2
                squares.append(row)
    n = len(histories[0].x) - MIN_HISTORY

    def pooled(values):
        return (PRIOR_COUNT * prior**2 + n * sum(values) / len(values)) / (PRIOR_COUNT + n)

    means = {name: pooled([row[name] for row in squares if name in row]) for name in CANDIDATES}
    likelihood = {name: mean ** (-(PRIOR_COUNT + n) / 2) for name, mean in means.items()}
    best = max(likelihood.values())
    likelihood = {name: max(value / best, 1e-12) for name, value in likelihood.items()}
    own = [sum(likelihood[k] * v for k, v in row.items()) / sum(likelihood[k] for k in row) for row in squares]
    return likelihood, math.sqrt(pooled(own))


@pytest.mark.parametrize("logarithmic", [True, False])
def test_weights_and_error_are_those_of_the_slow_implementation(logarithmic):
    rng = np.random.default_rng(0)
    for _ in range(10):
        x = np.cumsum(rng.uniform(0.1, 1.0, 8))
        histories = []
        for _ in range(3):
            y = np.exp(0.5 * x + 0.2 * rng.standard_normal(8))
            histories.append(History(x, y, 0.05 * y, np.full(8, np.nan)))
        found = combine(histories, Response(curves, tuple(CANDIDATES), 0.4, logarithmic))
        expected, error = slow(histories, 0.4, logarithmic)
        assert dict(found.weights) == pytest.approx(expected, rel=1e-9)
        assert found.error == pytest.approx(error, rel=1e-9)
        assert found.freedom == PRIOR_COUNT + 5


def test_a_falling_power_is_the_best_of_all_decays():
    rng = np.random.default_rng(1)
    x = np.linspace(12, 16, 7)
    y = 3 + 2 * np.exp(-0.4 * (x - x[0])) + 0.02 * rng.standard_normal((5, 7))
    decays, factors = fit_falling(x, y)
    for row, decay, (floor, factor) in zip(y, decays, factors):
        best = (math.inf, 0.0, 0.0, 0.0)
        for beta in DECAYS:
            columns = np.column_stack([np.ones(7), np.exp(-beta * (x - x[-1]))])
            (E, B), *_ = np.linalg.lstsq(columns, row, rcond=None)
            if E >= 0 and B >= 0:
                best = min(best, (float(np.sum((row - columns @ [E, B]) ** 2)), beta, E, B))
        assert (decay, floor, factor) == pytest.approx(best[1:], rel=1e-6)


def test_a_rising_loss_has_no_falling_power():
    decays, factors = fit_falling(np.arange(5.0), np.arange(5.0)[None] + 2)
    assert np.isnan(decays).all()
    assert np.isnan(factors).all()
