"""Turning points: found where there is one, and, as the negative control, not found where there is none."""

import math

import numpy as np
import pytest

from ptq_eval.laws import Caution, Why, analyse, critical_tokens, turning_point
from ptq_eval.laws.turning.observed import Untested
from ptq_eval.sampling import Design
from tests.laws.synthetic import RATIO, RATIOS, SMALL_LOSS, table

D = np.geomspace(1e6, 1e8, 9)


def curve(turn, rng=None, scatter=0.0, depth=0.05):
    x = np.log(D / turn)
    loss = 3 + depth * x * x
    return loss + (scatter * rng.normal(size=len(D)) if rng else 0)


def windows_of(loss, rng, noise=0.05, n=64):
    return loss[:, None] + rng.normal(0, 0.5, n) + noise * rng.normal(size=(len(loss), n))


def constant(theta, N, D, P):
    return 0.5 * np.exp(-P / 0.9)


def test_an_interior_minimum_is_found_between_its_neighbours():
    rng = np.random.default_rng(0)
    loss = curve(1.3e7)
    found = turning_point(D, loss, windows_of(loss, rng))
    assert found.interior
    assert found.place.value == pytest.approx(1.3e7, rel=1e-6)
    assert found.place.low <= D[3] < 1.3e7 < D[5] <= found.place.high
    assert found.rise > 2 * found.rise_se > 0


@pytest.mark.parametrize("turn", [1e12, 1e3])
def test_a_minimum_at_either_end_is_not_interior(turn):
    loss = curve(turn)
    found = turning_point(D, loss, windows_of(loss, np.random.default_rng(0)))
    assert not found.interior
    assert found.tokens == (D[-1] if turn > 1e9 else D[0])
    assert found.place.high == np.inf


def test_without_windows_significance_is_unknown_and_nothing_is_claimed():
    found = turning_point(D, curve(1.3e7), None)
    assert not found.interior
    assert np.isnan(found.rise_se)
    assert np.isnan(found.p_value)
    assert found.untested is Untested.NO_ERRORS


def test_the_errors_of_the_losses_serve_where_there_are_no_windows():
    found = turning_point(D, curve(1.3e7, np.random.default_rng(0), 0.002), None, errors=np.full(9, 0.002))
    assert found.interior
    noisy = turning_point(D, curve(1.3e7, np.random.default_rng(0), 0.002), None, errors=np.full(9, 0.2))
    assert not noisy.interior
    assert noisy.detectable_rise > 5 * found.detectable_rise


def test_the_draw_of_calibration_windows_is_part_of_the_evaluation_error():
    rng = np.random.default_rng(0)
    loss = curve(1.3e7)
    windows, drawn = windows_of(loss, rng), np.linspace(0.01, 0.2, 9)
    alone, both = turning_point(D, loss, windows), turning_point(D, loss, windows, None, drawn)
    added = np.hypot(drawn[int(np.argmin(loss))], drawn[-1])
    assert both.evaluation_se == pytest.approx(np.hypot(alone.evaluation_se, added))
    assert both.p_value > alone.p_value
    assert both.detectable_rise > alone.detectable_rise
    assert alone.interior
    assert not both.interior
    by_eight = turning_point(D, loss, windows, Design(np.zeros(64, int), np.arange(64) // 8))
    assert (alone.evaluation_df, by_eight.evaluation_df) == (63, 7)
    far = turning_point(D, loss, windows, None, 10 * drawn)
    assert far.place.low < alone.place.low


def test_losses_that_are_not_finite_are_left_out():
    loss = curve(1.3e7)
    windows = windows_of(loss, np.random.default_rng(0))
    holes = np.where(np.arange(len(D)) == 7, np.nan, loss)
    assert turning_point(D, holes, windows).place.value == pytest.approx(1.3e7, rel=1e-6)
    assert np.isnan(turning_point(D, np.full(len(D), np.nan), windows).tokens)


def test_a_flat_curve_with_training_noise_rarely_seems_to_turn():
    """Windows alone would claim a turn nearly always: they do not see the scatter of the checkpoints."""
    claims = naive = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        loss = 3 + 0.01 * rng.normal(size=len(D))
        windows = windows_of(loss, rng, noise=0.01)
        found = turning_point(D, loss, windows, n_boot=0)
        difference = windows[-1] - windows[int(np.argmin(loss))]
        naive += 0 < np.argmin(loss) < 8 and found.rise > 2 * difference.std() / 8
        claims += found.interior
    assert naive > 100
    assert claims < 16


@pytest.mark.slow
def test_negative_control_no_growth_of_delta_no_turning_point():
    for seed in range(5):
        rows, windows = table(np.random.default_rng(seed), delta=constant, bits=(2, 3, 4))
        for found in analyse(rows, windows, n_boot=50)["critical_tokens"]:
            assert not found["interior"]
            assert found["predicted"] is None or found["extrapolation_factor"] > 100
            assert found["verdict_kind"] in ("not_before", "not_identified")


def test_an_observed_turn_is_called_harmful_and_the_rest_forecast():
    rows, windows = table(np.random.default_rng(0))
    verdicts = {(c["run"], c["bits"]): c for c in analyse(rows, windows)["critical_tokens"]}
    two = verdicts["size0", 2.0]
    assert two["interior"]
    assert two["verdict_kind"] == "observed"
    assert two["full_precision_share"] is None
    assert two["p_value"] <= two["adjusted_p"] <= 0.05
    assert two["detectable_rise"] < two["rise"]
    assert two["observed"]["low"] < 87.7 * 80e3 < two["observed"]["high"]
    four = verdicts["size0", 4.0]
    assert not four["interior"]
    assert four["verdict_kind"] in ("forecast", "not_before")
    assert four["answer"]["low"] < critical_tokens(80e3, 4, constants=[RATIO, SMALL_LOSS])
    assert four["observed"]["high"] is None
    assert four["observed"]["open"] == ["high"]
    assert verdicts["size0", 8.0]["reason"]["kind"] == "too_far"


def test_a_full_precision_loss_that_rises_is_named_and_forbids_a_prediction():
    rows, windows = table(np.random.default_rng(0), sizes=(80e3,), delta=constant)
    late = {}
    for row in rows:
        lift = 0.3 * max(0.0, np.log(row["tokens_per_param"] / 50))
        late[row["key"]] = tuple(part + lift for part in windows[row["key"]])
        row["loss_fp"] += lift
        if "loss_q" in row:
            row["loss_q"] += lift
    out = analyse(rows, late, n_boot=50)
    assert any(one["kind"] == Caution.FULL_PRECISION_RISES for one in out["cautions"])
    assert all(c["reason"]["kind"] == Why.FULL_PRECISION_RISES for c in out["critical_tokens"] if not c["interior"])
    assert all(c["full_precision_share"] == "main" for c in out["critical_tokens"] if c["interior"])


@pytest.mark.parametrize(
    ("rates", "schedule"),
    [
        (np.linspace(3e-3, 3e-4, len(RATIOS)), "decaying"),
        (np.append(np.full(len(RATIOS) - 1, 3e-3), 1e-3), "decaying"),
        (np.full(len(RATIOS), 3e-3), "constant"),
        ([None] * len(RATIOS), "unknown"),
    ],
)
def test_the_learning_rate_confound_is_named(rates, schedule):
    rows, windows = table(np.random.default_rng(0), rates=rates)
    found = analyse(rows, windows, n_boot=10)["cautions"]
    assert {"kind": "schedule", "schedule": schedule, "runs": ["size0", "size1"]} in found


def test_few_runs_negative_deltas_and_extrapolation_are_warned_of():
    rows, windows = table(np.random.default_rng(0), noise=0.05)
    rows[4]["delta"] = -1e-4
    found = {one["kind"]: one for one in analyse(rows, windows, n_boot=10)["cautions"]}
    assert found[Caution.FEW_RUNS] == {"kind": "few_runs", "runs": 2, "needed": 10}
    assert found[Caution.RUNS_OF_SIZES]["sizes"] == 2
    assert found[Caution.NEGATIVE_DELTAS]["negative"] >= 1
    assert found[Caution.EXTRAPOLATED]["largest"] > 1


def test_the_growth_of_delta_shifts_the_observed_turn():
    """Twice the degradation turns earlier, and the observation follows the law."""
    places = []
    for factor in (1, 4):
        theta = {**RATIO, "C": factor * RATIO["C"]}
        rows, windows = table(np.random.default_rng(1), theta=theta, loss=SMALL_LOSS, bits=(2, 3))
        places.append(analyse(rows, windows, n_boot=20)["critical_tokens"][0]["observed"]["value"])
    expected = 4 ** (-1 / (RATIO["gamma"] + SMALL_LOSS["beta"]))
    assert places[1] / places[0] == pytest.approx(expected, rel=0.35)


@pytest.mark.slow
@pytest.mark.parametrize("phi", [0.0, 0.5])
def test_the_interval_holds_an_abrupt_turn_that_is_nearly_always_between_the_lowest_checkpoint_and_the_next(phi):
    t, turn = np.linspace(0, 1, 30), 2 / 3
    rise = np.expm1(-4 * np.maximum(t - turn, 0) / (1 - turn)) / math.expm1(-4)
    loss = 40 * (np.maximum(turn - t, 0) / turn) ** 2 + 8 * rise  # flat before the turn, in standard deviations
    D, rng, inside, lowest = np.geomspace(1e8, 1e10, 30), np.random.default_rng(5), [], []
    noise = rng.standard_normal((20, 30))
    for k in range(1, 30):
        noise[:, k] = phi * noise[:, k - 1] + math.sqrt(1 - phi**2) * noise[:, k]
    for scatter in noise:
        found = turning_point(D, loss + scatter, None, errors=np.zeros(30), n_boot=100)
        if found.interior:
            place = 1e8 * 100**turn
            inside.append(found.place.low <= place <= found.place.high)
            lowest.append(found.tokens < place)
    assert len(inside) > 15
    assert np.mean(lowest) > 0.9
    assert np.mean(inside) > 0.8
