"""Contract of a backtest: what is stated from what, when a statement counts as refuted, and how it is scored."""

import math
from dataclasses import replace

import numpy as np
import pytest

from ptq_eval.laws.forecast.backtest import Ahead, What, asked_at, backtest, interval_score, origins, targets
from ptq_eval.laws.forecast.baselines import FORECAST, METHODS
from ptq_eval.laws.forecast.forecast import Paths, Turn, excludes_some
from ptq_eval.laws.forecast.score import best_baseline, scores, total
from ptq_eval.laws.forecast.series import Series, series_of
from ptq_eval.results.points import read
from tests.laws.forecast.support import LAWS, run

ONLY = {FORECAST: METHODS[FORECAST]}


def of(loss, delta=0.0, n=8):
    """One series with these losses."""
    loss = np.asarray(loss, float)
    tokens = 1e6 * 2.0 ** np.arange(n)
    return Series("r", "rtn", 2.0, 1e4, tokens, loss - delta, np.full(n, delta), np.full(n, 1e-4), np.full(n, np.nan))


def says(low, high):
    """A method whose D_crit is spread evenly between two D, in tokens."""

    def method(group, siblings, x, seed):
        for s in group:
            places = np.concatenate([s.x, x])
            wanted = np.linspace(math.log(low), math.log(high), 200)
            loss = 3 + np.abs(places - wanted[:, None])
            yield Paths(places, loss, loss, loss, loss)

    return {"made": method}


def turns(series, low, high):
    return [s for s in backtest([series], methods=says(low, high)) if s.what is What.TURN]


FALLING = 4 - 0.2 * np.arange(8)
TURNING = np.array([4, 3.7, 3.4, 3.2, 3.1, 3.2, 3.5, 3.9])


def test_only_what_came_before_the_origin_is_used():
    own = run(LAWS["power"], np.random.default_rng(0), 8, bits=(2.0, 3.0))
    other = [replace(s, delta=np.where(np.arange(8) > 5, 3.0, s.delta)) for s in own]
    origin = own[0].tokens[5]
    for one, changed in zip(backtest(own), backtest(other)):
        if one.origin_tokens <= origin:
            assert (one.low, one.value, one.high) == (changed.low, changed.value, changed.high), one.method


def test_a_statement_for_every_series_origin_and_target():
    own = run(LAWS["power"], np.random.default_rng(0))
    statements = backtest(own, methods=ONLY)
    assert {s.origin_tokens for s in statements} == set(own[0].tokens[3:-1])
    for s in own:
        for origin in origins(own):
            mine = [t for t in statements if (t.bits, t.origin_tokens) == (s.bits, origin)]
            assert [t.ahead for t in mine if t.what is What.LOSS] == [ahead for ahead, _ in targets(s, origin)]
            for t in mine:
                if t.what is not What.TURN:
                    i = int(np.flatnonzero(s.tokens == t.target_tokens)[0])
                    assert t.truth == getattr(s, t.what)[i]
                    assert t.refuted == (not t.low <= t.truth <= t.high)
                    assert t.low <= t.value <= t.high


def test_targets_are_the_next_checkpoint_and_those_near_twice_and_four_times():
    series = of(FALLING)
    assert list(targets(series, 8e6)) == [(Ahead.NEXT, 4), (Ahead.TWICE, 4), (Ahead.FOUR_TIMES, 5)]
    assert list(targets(series, 64e6)) == [(Ahead.NEXT, 7), (Ahead.TWICE, 7)]


@pytest.mark.parametrize(
    ("low", "high", "refuted"), [(8e6, 3e7, False), (7e7, 1e8, True), (1.1e6, 3e6, True), (2e6, 1e9, False)]
)
def test_an_observed_turn_refutes_an_interval_elsewhere(low, high, refuted):
    found = turns(of(TURNING), low, high)
    assert {s.refuted for s in found} == {refuted}
    assert all(s.decisive for s in found)
    assert found[0].truth == pytest.approx(16e6, rel=0.2)


def test_a_loss_that_falls_beyond_the_interval_refutes_it():
    found = turns(of(FALLING), 4e6, 2e7)
    assert all(s.refuted and s.decisive and math.isnan(s.truth) for s in found)
    assert not any(s.refuted for s in turns(of(FALLING), 4e6, 4e8))


@pytest.mark.parametrize(
    ("low", "high", "made"),
    [(4e6, 2e7, True), (1e6, 2e6, True), (8e6, math.inf, True), (9e6, math.inf, True), (4e6, math.inf, False)],
)
def test_a_lower_end_before_the_last_checkpoint_alone_is_no_statement(low, high, made):
    assert excludes_some(Turn(low, math.sqrt(low * min(high, 1e9)), high), 8e6) is made


def test_a_flat_loss_decides_nothing():
    flat = of(3 + 0.01 * np.array([1, -1, 1, -1, 1, -1, 1, -1]))
    found = turns(flat, 4e6, 2e7)
    assert not any(s.decisive or s.refuted for s in found)
    assert all(math.isfinite(s.score) for s in found)
    summed = total(scores(found), What.TURN, method="made")
    assert summed.n == 0
    assert math.isnan(summed.made)
    assert math.isnan(summed.refuted)


def test_the_interval_score_is_that_of_gneiting_and_raftery():
    assert interval_score(1, 3, 2, 0.9) == 2
    assert interval_score(1, 3, 4, 0.9) == pytest.approx(2 + 20)
    assert interval_score(1, 3, 0.5, 0.8) == pytest.approx(2 + 5)


def test_turns_are_scored_by_the_checkpoint_with_the_least_loss():
    # From 8e6 on: 90 % of the draws are least at the checkpoints of 16e6 to 64e6.
    first, last = turns(of(TURNING + 1), 14e6, 70e6)[0], turns(of(TURNING), 14e6, 70e6)[-1]
    assert first.origin_tokens == 8e6
    assert first.width == pytest.approx(math.log(64 / 16))
    assert first.score == pytest.approx(first.width)  # the least is at 16e6
    # What was measured up to the origin is known: draws that are never below it do not count.
    assert (last.origin_tokens, last.width, last.score) == (64e6, 0.0, 0.0)
    missed = turns(of(FALLING), 14e6, 18e6)[0]
    assert missed.score == pytest.approx(20 * math.log(128 / 16))


def test_the_rows_of_the_file_have_the_columns_that_were_agreed():
    rows = [s.to_dict() for s in backtest(run(LAWS["power"], np.random.default_rng(0), 8, bits=(2.0,)))]
    columns = {
        "run", "quantizer", "bits", "origin_tokens", "what", "target_tokens", "low", "value", "high", "level", "truth",
        "refuted", "method",
    }  # fmt: skip
    assert all(columns <= set(row) for row in rows)
    assert {row["what"] for row in rows} == {"loss_q", "delta", "critical_tokens"}
    per_method = {name: [r["target_tokens"] for r in rows if r["method"] == name] for name in METHODS}
    assert all(repr(targets) == repr(per_method[FORECAST]) for targets in per_method.values())


def test_scores_add_up():
    statements = backtest(run(LAWS["power"], np.random.default_rng(3), 8, bits=(2.0, 3.0)))
    found = scores(statements)
    for score in found:
        if score.what is What.LOSS and score.bits is None and score.ahead is None:
            own = [s for s in statements if s.method == score.method and s.what is What.LOSS]
            assert score.n == len(own)
            assert score.coverage == pytest.approx(np.mean([s.low <= s.truth <= s.high for s in own]))
            assert score.score == pytest.approx(np.mean([s.score for s in own]))
    totals = {name: total(found, What.LOSS, method=name).score for name in METHODS}
    assert best_baseline(found, What.LOSS).score == min(v for name, v in totals.items() if name != FORECAST)
    assert total(found, What.LOSS, 5.0) is None


def test_the_same_seed_gives_the_same_statements():
    own = run(LAWS["bent"], np.random.default_rng(0), 8)
    one, same, other = (backtest(own, methods=ONLY, seed=seed) for seed in (0, 0, 1))
    assert repr(one) == repr(same)
    assert repr(one) != repr(other)


def test_series_are_read_from_the_rows_of_a_table():
    rows = [
        {"run": "a", "tokens": D, "params": 100, "quantizer": q, "bits": bits, "loss_fp": 3.0, "loss_q": 3.1,
         "delta": 0.1 * D, "delta_se": 0.01, "status": "ok", "learning_rate": rate}
        for D, rate in ((300, 1.0), (100, 2.0), (200, 2.0))
        for q, bits in (("none", math.nan), ("rtn", 2), ("rtn", 3), ("awq", 2))
    ]  # fmt: skip
    found = series_of(read(rows)[0])
    assert [(s.quantizer, s.bits) for s in found] == [("rtn", 2), ("rtn", 3), ("awq", 2)]
    assert found[0].tokens.tolist() == [100, 200, 300]
    assert found[0].phase.tolist() == [0, 0, 0.5]
    assert found[0].delta.tolist() == [10, 20, 30]
    assert asked_at(
        [replace(s, tokens=100 * 10.0 ** np.arange(6)) for s in run(LAWS["power"], np.random.default_rng(0), 6)]
    )
