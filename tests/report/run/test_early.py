"""Contract: what a report says of deltas that ended before the last evaluation window."""

from __future__ import annotations

from ptq_eval.report.common.data import Study
from ptq_eval.report.run import latex, page
from ptq_eval.report.run.words import with_early
from tests.report.synthetic import make_fit, make_table


def early(windows):
    table = make_table(runs=("small",), quantizers=("rtn",), bits=(3, 4))
    rows = table.index[table["quantizer"] != "none"][: len(windows)]
    table.loc[rows, "windows"] = windows
    return Study(table, make_fit(table), {})


def test_deltas_that_ended_early_are_counted_on_the_page_and_under_the_table():
    study = early([16, 20, 48])
    words = "3 of 20 deltas ended early, by the rule of --precision, after 20 of 64 windows (median, 16 to 48)"
    text = page.document(study)
    assert words in text
    assert "their loss_q is the full-precision loss over all windows plus δ." in text
    assert "for them it covers the choice of those few" in text
    tex = latex.document(study)
    assert words.replace("--", "-{}-") in tex
    assert r"their loss\_q is the full-precision loss over all windows plus $\delta$." in tex


def test_deltas_that_ended_at_one_place_have_no_range():
    assert "after 32 of 64 windows (each)" in page.document(early([32, 32]))


def test_without_an_early_stop_nothing_is_said_of_it():
    study = early([])
    assert "ended early" not in page.document(study) + latex.document(study)


def test_intervals_of_fit_json_say_it_in_the_same_words():
    table = early([16, 20, 48]).table
    plain = make_fit(table)
    full, rtn = with_early(plain, table)["fits"]
    assert full == plain["fits"][0]  # full-precision losses are of all windows
    words = "3 of 20 deltas ended early, by the rule of --precision, after 20 of 64 windows (median, 16 to 48)"
    assert rtn["interval"] == f"{plain['fits'][1]['interval']}; {words}"
    assert words in page.document(Study(table, plain, {}))
    assert with_early(plain, early([]).table) == plain


def test_only_the_deltas_of_a_fit_are_counted_for_it():
    table = make_table(quantizers=("rtn", "gptq"), ratios=(20, 50, 100), bits=(3,))
    table.loc[(table["quantizer"] == "rtn") & (table["run"] == "small"), "windows"] = 32
    fit = make_fit(table)
    fit["fits"] += [{**fit["fits"][1], "runs": ["large"]}]
    intervals = [entry["interval"] for entry in with_early(fit, table)["fits"]]
    assert "3 of 6 deltas" in intervals[1]
    assert all("early" not in intervals[i] for i in (0, 2, 3))
