"""Property: what holds for any number and any name."""

from __future__ import annotations

import json
import math
import re

from hypothesis import given
from hypothesis import strategies as st

from ptq_eval.report.common import numbers, tables
from ptq_eval.report.common.files import plain
from ptq_eval.report.run.latex import escape

FINITE = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12)
ERRORS = st.floats(min_value=1e-14, max_value=1e10)


def parse(text):
    """The value, error and unit in the last place of `0.1234(56)` or `1.20(34)e-9`."""
    digits, error, power = re.fullmatch(r"(-?[\d.]+)\((\d+)\)(?:e(-?\d+))?", text).groups()
    decimals = len(digits.split(".")[1]) if "." in digits else 0
    scale = 10.0 ** int(power or 0)
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


@given(st.text())
def test_escaped_latex_holds_nothing_active(text):
    bare = re.sub(r"\\(?:[&%$#_{}]|text\w+\{\})|\$\\(?:delta|pm|times)\$|\{\}", "", escape(text))
    assert not re.search(r"[&%$#_{}\\~^]", bare)
    assert all(" " <= c <= "ÿ" for c in bare)


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
