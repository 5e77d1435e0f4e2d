"""Contract: what a report says of its standard errors, and that a comparison with rounding is paired."""

from __future__ import annotations

import pytest

from ptq_eval.report.common.data import Study
from ptq_eval.report.run import page
from tests.report.synthetic import make_fit, make_table

COVERED = {
    "text": "are about this text as a whole",
    "texts": "are about other documents of this kind",
    "passages": "are about other passages of the same documents only",
}


def study(table):
    return Study(table, make_fit(table), {})


@pytest.mark.parametrize("covers", COVERED)
def test_the_page_says_what_the_errors_are_about_and_what_the_windows_are_worth(covers):
    table = make_table(runs=("small",), quantizers=("rtn",), bits=(3, 4))
    table.loc[table["quantizer"] != "none", "covers"] = covers
    text = page.document(study(table))
    assert [words in text for words in COVERED.values()] == [name == covers for name in COVERED]
    assert "the windows are worth 70 independent ones." in text


def test_a_table_of_an_earlier_version_says_nothing_of_it():
    table = make_table(runs=("small",), quantizers=("rtn",), bits=(3, 4))
    older = table.drop(
        columns=["delta_df", "effective_windows", "documents", "covers", "over_rounding", "over_rounding_se"]
    )
    assert "Standard errors of δ are" not in page.document(study(older))


def test_a_method_is_compared_with_rounding_by_the_paired_error():
    """δ of GPTQ is larger by 0.03: six errors if the windows are paired, and noise if not, or by chance of rounding."""
    table = make_table(runs=("small",), quantizers=("rtn", "gptq"), bits=(3,))
    one = table["tokens_per_param"] == table["tokens_per_param"].min()
    table.loc[table["quantizer"] != "none", ["delta", "delta_se"]] = (0.2, 0.05)
    table.loc[one & (table["quantizer"] == "gptq"), ["delta", "over_rounding", "over_rounding_se"]] = (
        0.23,
        0.03,
        0.005,
    )
    table["rounding_sd"] = 0.0
    text = page.document(study(table))
    assert "0.0300(50)" in text
    assert "Significantly worse" in text
    assert "Significantly worse" not in page.document(study(table.assign(rounding_sd=0.03)))
    table["over_rounding_se"] = float("nan")
    assert "Significantly worse" not in page.document(study(table))


def test_the_page_says_that_one_draw_of_the_calibration_windows_says_nothing_of_others():
    table = make_table(runs=("small",), bits=(3, 4))
    rtn = table["quantizer"] == "rtn"
    table.loc[rtn, "calibration_draws"] = float("nan")
    text = page.document(study(table))
    assert "covers another draw of the calibration windows of gptq, awq: with one draw" in text
    assert "calibration windows" not in page.document(study(table[rtn | (table["quantizer"] == "none")]))


def test_the_page_says_what_the_draw_adds_for_each_method():
    table = make_table(runs=("small",), bits=(3, 4))
    for quantizer, share in (("gptq", 0.8), ("awq", 0.6)):
        own = table["quantizer"] == quantizer
        table.loc[own, "calibration_draws"] = 3
        table.loc[own, "calibration_se"] = share * table.loc[own, "delta_se"]
    text = page.document(study(table))
    assert "δ of gptq is a mean over 3 draws" in text
    assert "makes the errors 1.67 times as large" in text
    assert "makes the errors 1.25 times as large" in text


def test_the_page_says_how_much_delta_changes_between_seeds():
    table = make_table(quantizers=("rtn",), bits=(3, 4))
    assert "the seed alone" not in page.document(study(table))
    table["seeds"], table["seed_sd"] = 2, 0.1 * table["delta"]
    text = page.document(study(table))
    assert "2 runs differ in the seed alone from another one" in text
    assert "a standard deviation of 10 % of δ at 3 bits, 10 % of δ at 4 bits" in text
