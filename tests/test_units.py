"""Golden, contract and property: the one grammar in which people write counts and sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq_eval.errors import OptionError, TrajectoryFileError
from ptq_eval.units import BYTES, COUNT, read, read_number, write

MEANT = [
    ("1e9", COUNT, 10**9),
    ("1B", COUNT, 10**9),
    ("1G", COUNT, 10**9),
    ("300M", COUNT, 300_000_000),
    ("1.1b", COUNT, 1_100_000_000),
    ("8_000M", COUNT, 8 * 10**9),
    ("125_000_000", COUNT, 125_000_000),
    ("80k", COUNT, 80_000),
    (" 2e10 ", COUNT, 2 * 10**10),
    ("15 T", COUNT, 15 * 10**12),
    (2e6, COUNT, 2_000_000),
    ("-3", COUNT, -3),
    ("8GB", BYTES, 8 * 10**9),
    ("8G", BYTES, 8 * 10**9),
    ("8Gi", BYTES, 8 * 2**30),
    ("16GiB", BYTES, 16 * 2**30),
    ("8_000MB", BYTES, 8 * 10**9),
    ("1e+10", BYTES, 10**10),
    ("3kib", BYTES, 3072),
    ("1.5 g", BYTES, 1_500_000_000),
    ("0.3GiB", BYTES, 322122547),
    ("10B", BYTES, 10),
    (7, BYTES, 7),
]
MISTAKEN = [
    *((text, COUNT) for text in ("", "a billion", "1GB", "1,000", "1__0", "_1", "nan", "2.5", "1e-3", "1e9999")),
    *((value, COUNT) for value in (True, None, 2.5, float("nan"), float("inf"), [1], b"1")),
    *((text, BYTES) for text in ("much", "8 GBB", "GB", "8QB", "8iB", "1e400")),
]  # fmt: skip


@pytest.mark.parametrize(("text", "unit", "value"), MEANT)
def test_numbers_as_people_write_them(text, unit, value):
    found = read(text, unit)
    assert (found, type(found)) == (value, int)


@pytest.mark.parametrize(("value", "unit"), MISTAKEN)
def test_anything_else_is_refused_with_a_line_that_shows_how(value, unit):
    with pytest.raises(OptionError) as caught:
        read(value, unit, name="--flag")
    assert str(caught.value).startswith(f"--flag is not {unit.noun}")
    assert f"got {value!r}" in str(caught.value)
    assert unit.example in str(caught.value)


def test_the_error_may_be_that_of_a_file():
    with pytest.raises(TrajectoryFileError, match="offset_tokens is not a whole number"):
        read("x", name="offset_tokens", error=TrajectoryFileError)


@pytest.mark.parametrize(("text", "value"), [("3e-4", 3e-4), ("0.02", 0.02), (3, 3.0), ("-1_000.5", -1000.5)])
def test_plain_numbers(text, value):
    assert read_number(text) == value


@pytest.mark.parametrize("value", ["1k", "", "inf", "nan", None, True, "1e999"])
def test_what_is_not_a_plain_number(value):
    with pytest.raises(OptionError, match="--flag is not a number"):
        read_number(value, name="--flag")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(999.6, COUNT, "1k"), (1.234e9, COUNT, "1.23B"), (0, COUNT, "0"), (1e15, COUNT, "1000T"), (12.34, COUNT, "12.3"),
     (1.5e9, BYTES, "1.5 GB"), (512, BYTES, "512 B"), (12345, BYTES, "12.3 kB")],
)  # fmt: skip
def test_numbers_as_they_are_written(value, unit, text):
    assert write(value, unit) == text


@pytest.mark.parametrize("unit", [COUNT, BYTES])
@given(value=st.integers(-(10**25), 10**25))
def test_what_is_written_in_full_is_read_back(unit, value):
    assert read(write(value, unit, digits=None), unit) == value


@pytest.mark.parametrize("unit", [COUNT, BYTES])
@given(value=st.integers(1, 10**25))
def test_three_digits_are_within_half_a_percent_and_are_written_alike_again(unit, value):
    text = write(value, unit)
    assert abs(read(text, unit) / value - 1) <= 0.005
    assert write(read(text, unit), unit) == text


def test_digits_grouped_by_commas_are_answered_with_the_number_without_them():
    with pytest.raises(OptionError, match="write it without the comma: 2048000"):
        read("2,048,000")
    for decimal in ("2,48", "0,001"):
        with pytest.raises(OptionError) as caught:
            read(decimal)
        assert "comma" not in str(caught.value)
