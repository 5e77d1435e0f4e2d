"""Golden: how numbers, names and verdicts are written."""

from __future__ import annotations

import math

import pytest

from ptq_eval.report.common import numbers
from ptq_eval.report.run.latex import cell, escape
from ptq_eval.report.run.words import observed, predicted, verdict


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
        (1.2e-9, 3.4e-10, "1.20(34)e-9"),
        (0.0, 0.01, "0.000(10)"),
        (0.0, 1e-9, "0.0(10)e-9"),
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
        (1.2e-9, 3.4e-10, "(1.20 ± 0.34)e-9"),
    ],
)
def test_plus_minus(value, error, text):
    assert numbers.plus_minus(value, error) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (1000, "1k"), (80_000, "80k"), (999_600, "1M"), (2.56e6, "2.56M"), (3e11, "300B"),
     (1.4e13, "14T"), (None, "–"), (math.inf, "–")],
)  # fmt: skip
def test_count(value, text):
    assert numbers.count(value) == text


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"value": 0.5, "low": 0.4, "high": 0.6}, "0.5 [0.4, 0.6]"),
        ({"value": 0.5, "low": 0.4, "high": None}, "0.5 [0.4, open]"),
        ({"value": 0.5}, "0.5"),
        ({"value": None, "low": None, "high": None}, "–"),
        (None, "–"),
        ({"value": 1.23456e-7, "low": 1e-7, "high": 0.0}, "1.23e-07 [1.00e-07, 0]"),
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
        ("-0.123(45)*", "$-$0 & 123(45)$^*$"),
        ("123(45)", r"\multicolumn{2}{c}{123(45)}"),
        ("1.20(34)e-9", r"\multicolumn{2}{c}{$1.20(34)\times10^{-9}$}"),
        ("–", r"\multicolumn{2}{c}{--}"),
        ("failed", r"\multicolumn{2}{c}{failed}"),
    ],
)
def test_latex_cell(text, tex):
    assert cell(text) == tex


ENTRY = {"predicted": {"value": 4e6, "low": 3e6, "high": None}, "extrapolation_factor": 2.0, "interior": False}


def test_verdicts_are_observed_predicted_or_not_identifiable_and_never_two_of_them():
    seen = {
        **ENTRY,
        "interior": True,
        "observed": {"value": 1e6, "low": 5e5, "high": 2e6},
        "rise": 0.1,
        "rise_se": 0.01,
    }
    seen["verdict"] = "harmful beyond D = 1M tokens, observed inside the range"
    assert verdict(seen) == (
        "Harmful beyond D = 1M tokens, observed inside the range. Interval of the turn: 500k to 2M. By the last "
        "checkpoint the loss after quantization has risen by 0.100 ± 0.010 nats per token. The fits put the turn at "
        "4M [3M, open]."
    )
    beyond = {**ENTRY, "verdict": "predicted at 2× the largest D seen"}
    assert verdict(beyond) == "Predicted at 2× the largest D seen. Interval of the prediction: 3M to open."
    refused = {**ENTRY, "verdict": "not identifiable: too far to believe"}
    assert verdict(refused) == "Not identifiable: too far to believe."
    assert [(observed(e), predicted(e)) for e in (seen, beyond, refused)] == [
        (True, False), (False, True), (False, False)
    ]  # fmt: skip
    assert verdict({}) == "Not identifiable: the fit gives no verdict."
