"""Contract: the table of single tokens, and its absence where records say nothing of them."""

import numpy as np
import pytest

from ptq_eval.report.common.data import Study
from ptq_eval.report.run.page import document, sections
from ptq_eval.report.run.tokens import TITLE
from ptq_eval.results.tokens import COLUMNS
from tests.report.synthetic import make_fit, make_run, make_table


@pytest.fixture(scope="module")
def table():
    return make_table(runs=("small",), ratios=(20, 50), quantizers=("rtn", "gptq"), bits=(2, 4))


def study(table):
    return Study(table, make_fit(table), make_run(table))


def test_each_method_and_width_has_a_row_at_the_last_checkpoint(table):
    text = dict(sections(study(table)))[TITLE]
    rows = [line for line in text.splitlines() if line.startswith("| ") and "KL, mean" not in line]
    assert [line.split(" | ")[:2] for line in rows if "---" not in line] == [
        ["| gptq", "2"], ["| gptq", "4"], ["| rtn", "2"], ["| rtn", "4"]
    ]  # fmt: skip
    own = table[(table["quantizer"] == "rtn") & (table["bits"] == 2)].iloc[-1]
    cells = next(line for line in rows if line.startswith("| rtn | 2 ")).split(" | ")
    assert cells[-1] == f"{100 * own['loss_correlation']:.3f} % |"
    assert float(cells[7].partition("(")[0]) == pytest.approx(100 * own["delta_p"], abs=0.05)
    assert "D = 4M" in text


def test_a_study_of_earlier_records_has_no_such_section(table):
    for old in (table.assign(**dict.fromkeys(COLUMNS, np.nan)), table.drop(columns=list(COLUMNS))):
        assert TITLE not in dict(sections(study(old)))
        assert document(study(old))


def test_rows_of_earlier_records_beside_newer_ones_have_dashes(table):
    mixed = table.copy()
    mixed.loc[mixed["quantizer"] == "gptq", list(COLUMNS)] = np.nan
    lines = dict(sections(study(mixed)))[TITLE].splitlines()
    assert next(line for line in lines if line.startswith("| gptq | 2 ")).count("–") >= 8
