"""Contract: a comparison of laws is on the report's page, and is called out of date when it is."""

from __future__ import annotations

import csv

import pytest

from ptq_eval import compare_laws, fit_data
from ptq_eval.errors import OptionError, OutputMismatchError
from ptq_eval.report import write
from ptq_eval.report.common.data import Study
from ptq_eval.report.comparison import page as comparison
from ptq_eval.results.points import digest, read
from tests.report.synthetic import make_fit, make_run, make_table


@pytest.fixture(scope="module")
def rows():
    return make_table(ratios=(5, 13, 50, 200), quantizers=("rtn",), bits=(2, 3, 4))


@pytest.fixture(scope="module")
def few():
    """Rows whose report is quick to write."""
    return make_table(runs=("small",), ratios=(20, 50, 100), quantizers=("rtn",), bits=(2, 3))


@pytest.fixture(scope="module")
def found(rows):
    """Laws compared, and a question asked, on the deltas of `rows`."""
    quantized = rows[rows["quantizer"] != "none"]
    columns = "N=params,D=tokens,P=bits"
    asked = compare_laws(quantized, "kumar,ouyang", columns, tests=[("gamma_D", "gamma_N")], bootstrap=20)
    return {**asked, "records": Study(rows, {}, {}).digest}


def section(out):
    text = (out / "report.md").read_text(encoding="utf-8")
    return text.split(f"## {comparison.TITLE}\n")[1].split("\n## ")[0] if comparison.TITLE in text else ""


@pytest.mark.slow
def test_the_page_has_verdict_table_figure_and_answers(rows, found, tmp_path):
    comparison.write(tmp_path, found)
    write(tmp_path, rows, make_fit(rows), make_run(rows))
    text = section(tmp_path)
    ranking = found["comparisons"][0]
    assert ranking["verdict"][1:] in text
    assert "| 1 | kumar |" in text
    assert "| 2 | ouyang |" in text
    assert "(figures/comparison.png)" in text
    assert (tmp_path / "figures" / "comparison.png").exists()
    assert found["tests"][0]["verdict"][1:] in text
    assert "Out of date" not in text


@pytest.mark.slow
def test_other_measurements_make_it_out_of_date_and_another_fit_does_not(rows, found, tmp_path):
    comparison.write(tmp_path, found)
    refitted = make_fit(rows)
    refitted["fits"][1]["parameters"]["gamma_D"]["value"] = 0.7
    write(tmp_path, rows, refitted, {})
    assert "Out of date" not in section(tmp_path)
    more = rows.copy()
    more.loc[more.index[1], "delta"] *= 1.01
    write(tmp_path, more, refitted, {})
    assert section(tmp_path).lstrip().startswith("**Out of date: ")
    assert "`ptq-eval fit OUT --laws kumar,ouyang --test gamma_D=gamma_N --loss huber` makes it again" in section(
        tmp_path
    )
    assert "| 1 | kumar |" in section(tmp_path)


def test_a_comparison_of_somebodys_table_is_no_part_of_the_report(few, found, tmp_path):
    comparison.write(tmp_path, {**found, "records": ""})
    write(tmp_path, few, make_fit(few), {})
    assert not section(tmp_path)


def test_a_question_asked_later_keeps_the_ranking_of_the_same_records(found, tmp_path):
    ranked, asked = {**found, "tests": []}, {**found, "laws": [], "comparisons": []}
    comparison.write(tmp_path, ranked)
    comparison.write(tmp_path, asked)
    both = comparison.read(tmp_path)
    assert both["laws"] == ["kumar", "ouyang"]
    assert both["tests"][0]["verdict"] == found["tests"][0]["verdict"]
    comparison.write(tmp_path, {**asked, "records": "of others"})
    assert comparison.read(tmp_path)["comparisons"] == []


def test_a_damaged_comparison_is_named(few, tmp_path):
    (tmp_path / "comparison.json").write_text('{"comparisons": [')
    with pytest.raises(OutputMismatchError, match=r"comparison\.json"):
        write(tmp_path, few, {}, {})


def test_the_digest_is_that_of_the_written_table_in_any_order(few, tmp_path):
    write(tmp_path, few, {}, {})
    with open(tmp_path / "degradation.csv", encoding="utf-8", newline="") as lines:
        assert digest(read(csv.DictReader(lines))[0]) == Study(few, {}, {}).digest
    assert Study(few[::-1], {}, {}).digest == Study(few, {}, {}).digest


def test_columns_of_a_folder_are_refused(tmp_path):
    with pytest.raises(OptionError, match="for a table"):
        compare_laws(tmp_path, "kumar", where="bits < 4")


def test_a_loss_law_without_n_serves_the_critical_tokens_of_one_size():
    rows = make_table(runs=("small",), ratios=(5, 13, 50, 130, 320), quantizers=("rtn",), bits=(2, 3))
    quantized = rows[rows["quantizer"] != "none"]
    found = fit_data(quantized, "ratio,chinchilla_d", "N=params,D=tokens,P=bits,loss=loss_fp", bootstrap=10)
    assert [turn["bits"] for turn in found.fit["critical_tokens"]] == [2, 3]
