"""Golden: how numbers, names and verdicts are written."""

from __future__ import annotations

import math

import pytest

from ptq_eval.laws.findings import Caution, Why
from ptq_eval.laws.warnings import SCHEDULES
from ptq_eval.report.common import numbers
from ptq_eval.report.common.latex import cell, escape
from ptq_eval.report.common.words import reason_text
from ptq_eval.report.run.warnings import warning_texts
from ptq_eval.report.run.words import observed, predicted, verdict, verdict_text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.1234, 0.0056, "0.1234(56)"),
        (0.12346, 0.00123, "0.1235(12)"),
        (-0.00004, 0.00041, "-0.00004(41)"),
        (1.0, 0.0995, "1.00(10)"),
        (1.0, 0.0994, "1.000(99)"),
        (12.345, 1.26, "12.3(13)"),
        (5678.0, 1234.0, "5700(1200)"),
        (123.4, 45.0, "123(45)"),
        (0.5, 0.0, "0.5000"),
        (0.5, math.nan, "0.5000"),
        (0.5, None, "0.5000"),
        (math.nan, 0.1, "–"),
        (None, None, "–"),
        (1.2e-9, 3.4e-10, "1.20(34)×10⁻⁹"),
        (0.0, 0.01, "0.000(10)"),
        (0.0, 1e-9, "0.0(10)×10⁻⁹"),
        (2.0, 1e-9, "2.0000000000(10)"),
    ],
)
def test_uncertainty(value, error, text):
    assert numbers.with_error(value, error) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.5914, 0.006, "0.5914 ± 0.0060"),
        (5678.0, 1234.0, "5700 ± 1200"),
        (1.5, math.nan, "1.5000"),
        (1.2e-9, 3.4e-10, "(1.20 ± 0.34)×10⁻⁹"),
    ],
)
def test_plus_minus(value, error, text):
    assert numbers.plus_minus(value, error) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (1000, "1k"), (80_000, "80k"), (999_600, "1M"), (2.56e6, "2.56M"), (3e11, "300B"),
     (1.4e13, "14T"), (None, "–"), (math.inf, "–"), (4.5e-52, "4.50×10⁻⁵²")],
)  # fmt: skip
def test_count(value, text):
    assert numbers.count(value) == text


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"value": 0.5, "low": 0.4, "high": 0.6}, "0.5 [0.4 to 0.6]"),
        ({"value": 0.5, "low": 0.4, "high": None}, "0.5 [0.4 to open]"),
        ({"value": 0.5}, "0.5"),
        ({"value": 0.5, "low": None, "high": None, "open": ["low", "high"]}, "0.5 [open to open]"),
        ({"value": None, "low": None, "high": None}, "–"),
        (None, "–"),
        ({"value": 1.23456e-7, "low": 1e-7, "high": 0.0}, "1.23×10⁻⁷ [1.00×10⁻⁷ to 0]"),
    ],
)
def test_estimate(entry, text):
    assert numbers.estimate(entry) == text


@pytest.mark.parametrize(
    ("text", "tex"),
    [
        ("a_b & 50% #1 $x$", r"a\_b \& 50\% \#1 \$x\$"),
        ("{~^\\}", r"\{\textasciitilde{}\textasciicircum{}\textbackslash{}\}"),
        ("a--b", "a-{}-b"),
        ("é 中\x00\n", "é ??"),
        ("<|>", r"\textless{}\textbar{}\textgreater{}"),
    ],
)
def test_latex_escape(text, tex):
    assert escape(text) == tex


@pytest.mark.parametrize(
    ("text", "tex"),
    [
        ("0.123(45)", "0 & 123(45)"),
        ("-0.123(45)*", "$-$0 & 123(45)$^{*}$"),
        ("123(45)", r"\multicolumn{2}{c}{123(45)}"),
        ("1.20(34)×10⁻⁹", r"\multicolumn{2}{c}{$1.20(34)\times10^{-9}$}"),
        ("–", r"\multicolumn{2}{c}{--}"),
        ("failed", r"\multicolumn{2}{c}{failed}"),
    ],
)
def test_latex_cell(text, tex):
    assert cell(text) == tex


ENTRY = {
    "run": "a", "params": 1e4, "predicted": {"value": 4e6, "low": 3e6, "high": None, "open": ["high"]},
    "extrapolation_factor": 2.0, "largest_tokens": 2e6, "interior": False, "verdict_kind": "predicted", "reason": None,
}  # fmt: skip
SEEN = {
    **ENTRY, "interior": True, "verdict_kind": "observed", "observed": {"value": 1e6, "low": 5e5, "high": 2e6},
    "rise": 0.1, "rise_se": 0.01, "n_checkpoints": 5,
}  # fmt: skip


def test_verdicts_are_observed_predicted_or_not_identifiable_and_never_two_of_them():
    assert verdict(SEEN) == (
        "Harmful beyond D = 1M tokens (D/N = 100), observed inside the range. Interval of the turn: 500k to 2M. By the "
        "last checkpoint the loss after quantization has risen by 0.100 ± 0.010 nats per token. The fits put the turn "
        "at 4M [3M to open]."
    )
    poorly = {**SEEN, "poor_fit": {"r2": 0.2, "scatter": 0.8}}
    assert verdict(poorly) == verdict(SEEN).removesuffix(" The fits put the turn at 4M [3M to open].")
    assert verdict(ENTRY) == (
        "Predicted at 2× the largest D seen, D = 4M tokens (D/N = 400). Interval of the prediction: 3M to open."
    )
    refused = {**ENTRY, "verdict_kind": "not_identified", "reason": {"kind": "too_far", "factor": 1234.5}}
    assert verdict(refused) == ("Not identifiable: the fits point to 1,234× the largest D seen, too far to believe.")
    assert [(observed(e), predicted(e)) for e in (SEEN, ENTRY, refused)] == [
        (True, False), (False, True), (False, False)
    ]  # fmt: skip
    tested = {"p_value": 0.4, "adjusted_p": 0.8, "detectable_rise": 0.0512, "untested": None, "n_checkpoints": 9}
    power = (
        "No turn is observed; tested alone, this line would have shown a rise of 0.051 nats per token over the second "
        "half of the range with probability 0.8."
    )
    assert verdict({**ENTRY, **tested}) == f"{verdict(ENTRY)} {power}"
    few = {"untested": "few_checkpoints", "n_checkpoints": 4}
    assert verdict({**ENTRY, **few}) == f"{verdict(ENTRY)} With 4 checkpoints no turn can be tested for."
    assert "has risen by 0.100 ± 0.010 nats per token (p = 0.8 with control over all lines). " in verdict(SEEN | tested)
    assert verdict({}) == "Not identifiable: no reason is recorded."


@pytest.mark.parametrize(
    ("entry", "end"),
    [
        (
            {**SEEN, "full_precision_share": "main", "full_precision_rise": 0.07},
            "; but the full-precision loss rises too (0.07 of 0.1 nats per token): quantization is not the only cause",
        ),
        (
            {**SEEN, "full_precision_share": "main", "full_precision_rise": -0.1},
            "; but the full-precision loss rises too: quantization is not the only cause",
        ),
        (
            {**SEEN, "full_precision_share": "part", "full_precision_rise": 0.03},
            "; 0.03 of the rise of 0.1 nats per token is the full-precision loss's own",
        ),
        (
            {**ENTRY, "conflict": "not_confirmed", "observed_tokens": 1e6},
            "; not confirmed by the measurement: the loss is lowest at D = 1M tokens (D/N = 100), but no turn is "
            "observed there",
        ),
        (
            {**ENTRY, "conflict": "no_second_checkpoint"},
            "; inside the range of the fit, but this run has no second checkpoint to check it",
        ),
        (
            {**ENTRY, "poor_fit": {"r2": -0.2, "scatter": 1.23}},
            "; the law describes these deltas poorly (scatter 120 %)",
        ),
    ],
)
def test_what_qualifies_a_verdict_is_said(entry, end):
    assert verdict_text(entry).endswith(end)


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ({"kind": "wide_interval", "low": 4.5e-52, "high": 3.6e7}, "the interval of D_crit spans open to 36M tokens"),
        ({"kind": "short_range", "low": 1e9, "high": 4e9, "factor": 1000.4}, "at 1,000× the largest D"),
        ({"kind": "delta_does_not_grow", "constant": "gamma", "value": 0.1, "low": None, "high": 0.3}, "open to 0.3"),
        ({"kind": "law_misses_deltas", "bits": 8.0, "clear": 1, "deltas": 9}, "1 of 9 deltas is significantly above"),
        ({"kind": "too_few_points", "points": 1, "constants": 3}, "1 point for 3 constants"),
    ],
)
def test_reasons_in_words(reason, text):
    assert text in reason_text(reason)


FACTS = {
    "points": 1, "constants": ["a", "b"], "variable": "P", "distinct": 2, "needed": 3, "clear": 2, "deltas": 9,
    "variables": ["N", "D"], "one_value": False, "fit": {"kind": "not_finite"}, "law": "sun", "constant": "gamma",
    "value": 0.5, "low": 1.0, "high": 2.0, "factor": 3.0, "bits": 4.0, "rows": 2, "cause": "not_measured", "run": "a",
    "tokens": 1e9, "rise": 0.1, "error": 0.01, "scatter": "within", "schedule": "constant", "runs": ["a", "b"],
    "trajectory": "a", "quantizer": "rtn", "negative": 2, "extrapolated": 2, "critical_tokens": 4, "largest": 3.0,
    "too_far": 1, "limit": 100.0, "group_size": None, "calibration": "", "r2": 0.3, "sizes": 2,
}  # fmt: skip


def test_a_rise_that_is_not_significant_is_said_with_its_size():
    found = {
        **ENTRY, "verdict_kind": "not_before", "answer": {"low": 1e6, "value": None, "high": None, "level": 0.9},
        "observed_tokens": 2e6, "rise": 0.5, "rise_se": 0.05, "adjusted_p": 0.0571, "detectable_rise": 0.8,
    }  # fmt: skip
    assert verdict(found) == (
        "Not harmful before D = 1M tokens (D/N = 100), with 95 % probability. The loss is lowest at D = 2M and has "
        "risen by 0.500 ± 0.050 nats per token by the last checkpoint, which is not significant (p = 0.057 with "
        "control over all lines)."
    )


@pytest.mark.parametrize("kind", [*Why, *Caution])
def test_every_reason_and_every_warning_has_a_sentence(kind):
    facts = FACTS | {
        Why.CONFOUNDED: {"constants": [["A"], []]},
        Why.TOO_FEW_POINTS: {"constants": 3},
        Why.REFUTED: {"conflict": "still_falls"},
        Why.FORECAST_OPEN: {"checkpoints": 4},
        Why.DELTA_HIDDEN: {"most": 0.02},
        Caution.FEW_RUNS: {"runs": 2},
        Caution.RUNS_OF_SIZES: {"sizes": 2},
        Caution.POOR_FIT: {"scatter": 0.5},
    }.get(kind, {})
    say = reason_text if isinstance(kind, Why) else lambda one: warning_texts([one])[0]
    assert say({"kind": kind.value, **facts}).strip()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_is_named_for_one_run_and_for_several(schedule):
    one, two = (
        warning_texts([{"kind": "schedule", "schedule": schedule, "runs": runs}])[0] for runs in (["a"], ["a", "b"])
    )
    assert one.startswith("the points of a are ")
    assert two.startswith("the points of a and b are ")
    if schedule != "annealed":
        assert "one training run" in one
        assert "one training run" not in two
        assert "training runs" in two
