"""Contract and property: names that stand for numbers, and conditions on text."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq_eval import errors
from ptq_eval.laws.formulas.kumar import KumarPTQ
from ptq_eval.laws.tables import categories
from ptq_eval.laws.tables.expressions import evaluate
from ptq_eval.laws.tables.external import as_mapping, map_columns, parse_columns, select

FORMATS = np.array(["BF16", "NVFP4", None, "BF16"], object)


def mapped(text, **columns):
    n = len(FORMATS)
    table = {
        "N": np.full(n, 1e8),
        "D": np.full(n, 1e9),
        "delta": np.ones(n),
        "format": FORMATS,
        "bits": FORMATS,
    } | columns
    rows = np.array([0, 1, 3])
    return map_columns(KumarPTQ(), table, parse_columns(text), rows).data["P"].tolist()


@pytest.mark.parametrize(
    "text",
    [
        "bits={BF16:16,NVFP4:4}",
        "P=format{BF16:16, NVFP4:4}",
        "P=format{'BF16':16,\"NVFP4\":4e0}",
        "b=format{BF16:8,NVFP4:2},P=2*b",
    ],
)
def test_names_become_numbers(text):
    assert mapped(text) == [16, 4, 16]


def test_a_small_file_holds_the_numbers(tmp_path):
    (tmp_path / "f.json").write_text(json.dumps({"BF16": 16, "NVFP4": 4}))
    (tmp_path / "f.csv").write_text("format,bits\nBF16,16\nNVFP4,4\n")
    for name in ("f.json", "f.csv"):
        assert mapped(f"P=format{{@{tmp_path / name}}}") == [16, 4, 16]


def test_numbers_in_a_column_have_names_too():
    assert mapped("P=format{16:8,4:3}", format=np.array([16.0, 4.0, 1.0, 16.0])) == [8, 3, 8]


def test_python_gives_a_mapping():
    text = as_mapping({"N": "params", "bits": {"BF16": 16, "a:b": 4}})["bits"]
    assert categories.parse(text).numbers == {"BF16": 16.0, "a:b": 4.0}


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("P=format{BF16:16}", errors.TextColumnError, "'NVFP4' in row 2"),
        ("P=format{BF16:x}", errors.ExpressionError, "'x'"),
        ("P=format{BF16}", errors.ExpressionError, "not NAME:NUMBER"),
        ("P=format{}", errors.ExpressionError, "no name with a number"),
        ("P=format{a:1,a:2}", errors.ExpressionError, "two numbers"),
        ("P=farmat{BF16:16,NVFP4:4}", errors.ColumnError, "did you mean 'format'"),
        ("P=format{@nowhere.csv}", errors.DataFileError, "no such file"),
        ("P=format", errors.TextColumnError, "{BF16:NUMBER}"),
    ],
)
def test_what_is_wrong_is_said(text, error, said):
    with pytest.raises(error) as raised:
        mapped(text)
    assert said in str(raised.value)


NAMES = st.text(
    st.characters(blacklist_characters="\"'", blacklist_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=6
)


@given(st.dictionaries(NAMES, st.floats(-1e9, 1e9), min_size=1, max_size=5))
def test_any_names_are_read_back(numbers):
    assert categories.parse(categories.written(numbers)).numbers == numbers
    assert parse_columns(f"P=x{categories.written(numbers)},N=n")["N"] == "n"


TABLE = {
    "format": FORMATS,
    "bits": np.array([16.0, 4.0, 8.0, 16.0]),
    "day": np.array(["2026-01-02"] * 2 + ["2026-02-01"] * 2, object),
}


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ('isin(format, "BF16", "FP8")', [0, 3]),
        ('format.isin(["BF16", "NVFP4"])', [0, 1, 3]),
        ('format in ("NVFP4", "x")', [1]),
        ('format not in ("NVFP4", "BF16")', [2]),
        ("bits in (4, 8)", [1, 2]),
        ('bits == "16"', [0, 3]),
        ('bits != "16"', [1, 2]),
        ('format == ""', [2]),
        ('startswith(format, "NV") or contains(format, "F1")', [0, 1, 3]),
        ('endswith(format, "4") and bits < 5', [1]),
        ('day >= "2026-02"', [2, 3]),
    ],
)
def test_conditions_on_text(condition, rows):
    assert select(TABLE, condition).tolist() == rows


@pytest.mark.parametrize(
    "condition",
    ['bits < "5"', 'format in "BF16"', "format in (bits, 3)", 'isin(format)',
     "open('x')", "format.upper() == 'A'", "(1, 2)", '"abc"', "format", 'bits > 3 and "x"',
     "startswith(format, bits)", "__import__('os')", "[x for x in bits]", "format.__class__ == 3", "lambda: 1"],
)  # fmt: skip
def test_what_is_no_condition_is_refused(condition):
    with pytest.raises(errors.PtqEvalError):
        select(TABLE, condition)


@given(st.text(max_size=60))
def test_no_text_does_anything_but_give_a_value_or_an_error(text):
    for condition in (True, False):
        try:
            evaluate(text, lambda name: np.ones(3), condition=condition)
        except errors.PtqEvalError:
            continue


def test_one_equals_sign_in_a_condition_is_named():
    with pytest.raises(errors.ExpressionError, match="write == to compare"):
        select(TABLE, 'format = "BF16"')
