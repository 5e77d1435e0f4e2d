"""Property: what holds for any number and any name."""

from __future__ import annotations

import json
import math
import re

from hypothesis import example, given
from hypothesis import strategies as st

from ptq_eval.report.common import numbers, tables
from ptq_eval.report.common.files import plain
from ptq_eval.report.common.latex import LATIN, escape

FINITE = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12)
LOWERED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
ERRORS = st.floats(min_value=1e-14, max_value=1e10)


def parse(text):
    """The value, error and unit in the last place of `0.1234(56)` or `1.20(34)×10⁻⁹`."""
    digits, error, power = re.fullmatch(r"(-?[\d.]+)\((\d+)\)(?:×10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?", text).groups()
    power = (power or "0").translate(LOWERED)
    decimals = len(digits.split(".")[1]) if "." in digits else 0
    scale = 10.0 ** int(power)
    return float(digits) * scale, int(error) * 10.0**-decimals * scale


@given(FINITE, ERRORS)
def test_an_uncertainty_reads_back_to_two_digits_of_its_error(value, error):
    text = numbers.with_error(value, error)
    got, got_error = parse(text)
    assert math.isclose(got_error, error, rel_tol=0.051)
    assert abs(got - value) <= 0.051 * error + 1e-9 * abs(value)


@given(FINITE, ERRORS)
def test_the_sign_survives_and_no_number_is_longer_than_needed(value, error):
    text = numbers.with_error(value, error)
    assert text.startswith("-") == (math.copysign(1, value) < 0)
    assert len(re.search(r"\((\d+)\)", text)[1]) >= 2


@given(st.floats(min_value=1, max_value=1e15))
def test_a_count_is_right_to_three_digits(value):
    text = numbers.count(value)
    units = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
    got = float(text.rstrip("kMBT")) * units.get(text[-1], 1)
    assert math.isclose(got, value, rel_tol=0.0051)


def read_back(text):
    """The value of `1,234`, `0.0123` or `2.36×10⁻⁴`."""
    digits, power = re.fullmatch(r"(-?[\d,.]+)(?:×10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?", text).groups()
    return float(digits.replace(",", "")) * 10.0 ** int((power or "0").translate(LOWERED))


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e200, max_value=1e200))
def test_a_number_is_right_to_three_digits_and_never_written_as_machines_do(value):
    text = numbers.short(value)
    assert math.isclose(read_back(text), value, rel_tol=0.0051, abs_tol=1e-300)
    assert not re.search(r"[eE]|(?<![.\d])\d{4}", text)


@given(st.integers(-999_999, 999_999))
def test_a_whole_number_keeps_all_its_digits(value):
    assert numbers.short(value) == f"{value:,}"


POSITIVE = st.floats(min_value=1e-60, max_value=1e60)


@given(POSITIVE, POSITIVE, POSITIVE)
def test_an_end_that_limits_nothing_is_open(value, low, high):
    shown = numbers.estimate({"value": value, "low": low, "high": high})
    ends = re.fullmatch(r"\S+ \[(\S+) to (\S+)\]", shown).groups()
    for one, text in zip((low, high), ends):
        if value / 1e8 < one < value * 1e8:
            assert math.isclose(read_back(text), one, rel_tol=0.0051)
        if not value / 1e10 < one < value * 1e10:
            assert text == "open"


@given(POSITIVE, POSITIVE, POSITIVE)
def test_tokens_less_than_one_or_beyond_all_text_are_open_ends(value, low, high):
    shown = numbers.tokens_estimate({"value": value, "low": low, "high": high})
    for one, text in zip((low, high), re.fullmatch(r"\S+ \[(\S+) to (\S+)\]", shown).groups()):
        assert (text == "open") or 1 <= one < 1e18


@given(st.text())
@example("D_crit")
def test_escaped_latex_holds_nothing_active(text):
    bare = escape(text).replace(r"$D_{\mathrm{crit}}$", "")
    bare = re.sub(r"\\(?:[&%$#_{}]|(?:text\w+|dots)\{\})|\$(?:\\[A-Za-z]+|-)\$|\$\^\{[-\d]\}\$|\{\}", "", bare)
    assert not re.search(r"[&%$#_{}\\~^]", bare)
    assert all(" " <= c <= "ÿ" or c in LATIN for c in bare)


@given(st.lists(st.lists(st.text(), min_size=3, max_size=3), max_size=4))
def test_no_text_breaks_a_markdown_table(rows):
    lines = tables.markdown(("a", "b", "c"), rows).splitlines()
    assert len(lines) == len(rows) + 2
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {4}


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_anything_plain_is_valid_json_and_finite_values_survive(data):
    text = json.dumps(plain(data), allow_nan=False)
    assert json.loads(text) == plain(data)
