"""Oracle: weights of the rolling origin and the falling power, against slow implementations of what they say."""

import math

import numpy as np
import pytest

from ptq_eval.laws.forecast.candidates import DECAYS, History, fit_falling
from ptq_eval.laws.forecast.rolling import (
    DELTA,
    GROWTH,
    LEAST_SLOPE,
    MEMORY,
    MIN_DISTANCE,
    MIN_HISTORY,
    SCALES,
    SPREAD,
    STRETCH,
    Response,
    combine,
)


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


def weight(x, k):
    return math.exp(-(x[-1] - x[k]) / MEMORY) * min(1.0, (x[k] - x[k - 1]) / STRETCH)


def slow(histories, prior, logarithmic):
    """The probability of each candidate with each size of its error, one target and one size at a time."""
    errors = {name: [] for name in CANDIDATES}
    for h in histories:
        for j in range(MIN_HISTORY, len(h.x)):
            known = curves(History(h.x[:j], h.y[:j], h.noise[:j], h.phase[:j]))
            rise = [
                abs(c(np.array([h.x[j - 1] + 0.2]))[0] - c(np.array([h.x[j - 1] - 0.2]))[0]) for c in known.values()
            ]
            near = [i for i in range(j) if h.x[i] >= h.x[j - 1] - 1] if j > 3 else []
            near = near if len(near) >= 3 else list(range(j - 3, j))
            fall = (max(h.y[i] for i in near) - min(h.y[i] for i in near)) / (h.x[near[-1]] - h.x[near[0]])
            steep = max(float(np.mean(rise)) / 0.4, LEAST_SLOPE * fall)
            for k in range(j, len(h.x)):
                distance = max(h.x[k] - h.x[j - 1], MIN_DISTANCE) ** GROWTH
                lately = weight(h.x, k) / (k - MIN_HISTORY + 1)
                chance = h.noise[k] ** 2 + h.noise[j - 1] ** 2
                for name, curve in known.items():
                    said = curve(np.array([h.x[k]]))[0]
                    if logarithmic:
                        floor = 2 * h.noise[k] + 1e-12
                        error = math.log(max(h.y[k], floor)) - math.log(max(said, floor))
                        errors[name].append(
                            (error**2 / distance**2, chance / max(h.y[k], floor) ** 2 / distance**2, lately)
                        )
                    else:
                        unit = (distance * steep) ** 2
                        errors[name].append(((h.y[k] - said) ** 2 / unit, chance / unit, lately))
    x = histories[0].x
    n = sum(weight(x, k) for k in range(MIN_HISTORY, len(x)))
    found = {}
    for name, rows in errors.items():
        rows = rows or [row for others in errors.values() for row in others]
        total = sum(row[2] for row in rows)
        found[name] = []
        for s in SCALES:
            fits = sum(weight * (math.log(s**2 + chance) + square / (s**2 + chance)) for square, chance, weight in rows)
            found[name].append(math.exp(-0.5 * (math.log(s / prior) / SPREAD) ** 2 - n * fits / total / 2))
    total = sum(map(sum, found.values()))
    return {name: np.array(each) / total for name, each in found.items()}


@pytest.mark.parametrize("logarithmic", [True, False])
@pytest.mark.parametrize("n", [4, 5, 8])
def test_weights_and_errors_are_those_of_the_slow_implementation(logarithmic, n):
    """With four checkpoints no origin determines the candidate that needs five."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        x = np.cumsum(rng.uniform(0.1, 1.0, n))
        histories = []
        for _ in range(3):
            y = np.exp(0.5 * x + 0.2 * rng.standard_normal(n))
            histories.append(History(x, y, 0.05 * y, np.full(n, np.nan)))
        found = combine(histories, Response(curves, tuple(CANDIDATES), 0.4, logarithmic))
        expected = slow(histories, 0.4, logarithmic)
        for name, each in found.joint.items():
            assert each == pytest.approx(expected[name], rel=1e-6, abs=1e-10)
        assert sum(found.weights.values()) == pytest.approx(1)


def test_a_smooth_run_is_given_a_smaller_error_than_a_rough_one():
    x, sizes = np.linspace(0, 4, 9), []
    for wander in (0.0, 0.5):
        y = np.exp(0.5 * x + wander * np.sin(3 * x))
        joint = combine([History(x, y, 0.001 * y, np.full(9, np.nan))], DELTA).joint
        shares = np.sum(list(joint.values()), axis=0)
        sizes.append(float(shares @ np.log(SCALES)))
    assert sizes[0] < math.log(DELTA.prior) < sizes[1]


def test_a_bend_counts_for_more_when_it_is_recent():
    """Two runs whose slopes change once by as much, one of them long ago."""
    x, sizes = np.linspace(0, 8, 13), []
    for bend in (2.0, 6.5):
        y = np.exp(0.5 * x - 0.4 * np.maximum(x - bend, 0))
        joint = combine([History(x, y, 0.001 * y, np.full(13, np.nan))], DELTA).joint
        sizes.append(float(np.sum(list(joint.values()), axis=0) @ np.log(SCALES)))
    assert sizes[1] > sizes[0] + 0.5


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
