"""Contract: what a report says of deltas that ended before the last evaluation window."""

from __future__ import annotations

import numpy as np

from ptq_eval.laws import analyse
from ptq_eval.report import with_texts
from ptq_eval.report.common.data import Study
from ptq_eval.report.run import latex, page
from tests.laws.synthetic import table as synthetic
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
    ended = {"count": 3, "deltas": 20, "median": 20.0, "low": 16, "high": 48, "windows": 64}
    table = early([16, 20, 48]).table
    plain = make_fit(table)
    fits = [{**plain["fits"][0], "early": None}, {**plain["fits"][1], "early": ended}]
    full, rtn = with_texts({**plain, "fits": fits})["fits"]
    assert full["interval"] == plain["fits"][0]["interval"]  # full-precision losses are of all windows
    words = "3 of 20 deltas ended early, by the rule of --precision, after 20 of 64 windows (median, 16 to 48)"
    assert rtn["interval"] == f"{plain['fits'][1]['interval']}; {words}"
    assert words in page.document(Study(table, plain, {}))


def test_only_the_deltas_of_a_fit_are_counted_for_it():
    """`analyse` counts them: those of its configuration, beside the windows of their full-precision loss."""
    rows, windows = synthetic(np.random.default_rng(0), quantizers=("rtn", "gptq"))
    for row in rows:
        row["windows"] = 48
        if row["quantizer"] == "rtn" and row["run"] == "size0" and row["bits"] == 2:
            row["windows"] = 16 if row["step"] == rows[0]["step"] else 20
    found = analyse(rows, windows, n_boot=5)["fits"]
    assert [entry["early"] for entry in found[:2]] == [None, None]
    assert found[2]["early"] == {"count": 10, "deltas": 80, "median": 20.0, "low": 16, "high": 20, "windows": 48}
    assert found[3]["early"] is None
