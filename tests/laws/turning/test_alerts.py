"""Contract of alerts: turns that are observed, and forecasts whose interval begins near the present D."""

import math

import pytest

from ptq_eval.laws.turning.alerts import alerts
from ptq_eval.laws.turning.verdict import VerdictKind

ANSWER = {"low": 15e6, "value": 30e6, "high": 90e6, "level": 0.9}


def entry(kind, answer=ANSWER, bits=4.0, largest=10e6):
    return {
        "verdict_kind": kind, "answer": answer, "run": "small", "quantizer": "gptq", "bits": bits, "params": 1e6,
        "largest_tokens": largest,
    }  # fmt: skip


def test_an_observed_turn_always_alerts():
    (alert,) = alerts([entry("observed")], margin=0.01)
    assert (alert.kind, alert.low, alert.value, alert.high) == (VerdictKind.OBSERVED, 15e6, 30e6, 90e6)
    assert (alert.run, alert.quantizer, alert.bits, alert.tokens) == ("small", "gptq", 4.0, 10e6)


@pytest.mark.parametrize(("margin", "near"), [(1.4, False), (1.5, True), (2.0, True)])
def test_a_forecast_alerts_where_its_interval_begins_within_the_margin(margin, near):
    assert len(alerts([entry("forecast")], margin)) == near


def test_an_open_lower_end_is_not_near_and_an_open_upper_one_may_be():
    assert alerts([entry("forecast", {**ANSWER, "low": None})], margin=100) == []
    (alert,) = alerts([entry("observed", {**ANSWER, "high": None})], margin=2)
    assert math.isnan(alert.high)
    assert alert.to_dict()["high"] is None


@pytest.mark.parametrize("kind", ["not_before", "predicted", "not_identified"])
def test_nothing_else_alerts(kind):
    answer = None if kind == "not_identified" else {**ANSWER, "low": 1.0}
    assert alerts([entry(kind, answer)], margin=1e6) == []


def test_bits_choose_among_lines():
    entries = [entry("observed", bits=bits) for bits in (2.0, 3.0, 4.0)]
    assert [alert.bits for alert in alerts(entries, 1.5, (3, 4))] == [3.0, 4.0]
    assert len({alert.place for alert in alerts(entries, 1.5)}) == 3
