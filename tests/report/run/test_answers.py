"""Golden: the table of answers on entries made by hand, on the page, in a terminal of any width, and in LaTeX."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ptq_eval.report import render_fit
from ptq_eval.report.common.data import Study
from ptq_eval.report.run import answers, latex, page
from tests.report.synthetic import make_fit, make_run, make_table

RTN = {"quantizer": "rtn", "options": "{}", "group_size": 16, "symmetric": False, "calibration": "shared"}


def entry(kind, bits, *, params=80_000, run="small", answer=None, reason=None, **facts):
    return {
        **RTN, "run": run, "params": params, "bits": bits, "verdict_kind": kind, "answer": answer, "reason": reason,
        "predicted": answer, "observed": answer, "extrapolation_factor": 2.0, "forecast": answer, **facts,
    }  # fmt: skip


def interval(low, value, high, level=0.9):
    return {"low": low, "value": value, "high": high, "level": level}


OBSERVED = entry("observed", 2, answer=interval(2.56e6, 4.86e6, 19.9e6), rise=0.16, rise_se=0.05)
FORECAST = entry("forecast", 3, answer=interval(4.5e-52, 2e7, 3e40), detectable_rise=0.05)
NOT_BEFORE = entry("not_before", 4, answer=interval(4e7, None, None), detectable_rise=0.05)
PREDICTED = entry("predicted", 6, answer=interval(6.4e7, 8e7, 1e8, 0.95), conflict="not_confirmed", observed_tokens=1e6)
UNKNOWN = entry("not_identified", 8, reason={"kind": "too_far", "factor": 245.0})


@pytest.mark.parametrize(
    ("found", "lines", "bold"),
    [
        (OBSERVED, ("4.86M [2.56M to 19.9M]", "D/N 60.8 [32 to 249]", "observed"), True),
        (FORECAST, ("20M [open to open]", "D/N 250 [open to open]", "forecast"), False),
        (
            {**FORECAST, "answer": interval(1e6, 2e6, 4e6), "rise": 0.5, "rise_se": 0.05},
            ("2M [1M to 4M]", "D/N 25 [12.5 to 50]", "forecast (1)"),
            False,
        ),
        (NOT_BEFORE, ("not before D = 40M (95 %)", "D/N = 500"), False),
        (PREDICTED, ("80M [64M to 100M]", "D/N 1,000 [800 to 1,250]", "predicted by the law (1)"), False),
        (UNKNOWN, ("– (1)",), False),
        (entry("not_before", 4, params=None, answer=interval(4e7, None, None)), ("not before D = 40M (95 %)",), False),
    ],
)
def test_a_cell(found, lines, bold):
    assert answers.cell(found, {}) == answers.Cell(lines, bold)


@pytest.fixture(scope="module")
def study():
    table = make_table(runs=("small",), ratios=(20, 50, 200), quantizers=("rtn",), bits=(2, 3))
    fit = make_fit(table)
    again = {**UNKNOWN, "bits": 16, "reason": {"kind": "too_far", "factor": 1e6}}
    fit["critical_tokens"] = [OBSERVED, FORECAST, NOT_BEFORE, PREDICTED, UNKNOWN, again]
    return Study(table, fit, make_run(table))


def test_reasons_are_numbered_once_and_shared(study):
    [found] = answers.tables(study)
    [(run, label, cells)] = found.rows
    assert (run, label) == ("small (N = 80k)", "rtn")
    assert [cell.lines[-1] for cell in cells[3:]] == ["predicted by the law (1)", "– (2)", "– (2)"]
    assert found.footnotes == [
        "predicted inside the range, but no turn is observed there",
        "the fits point too far beyond the data to be believed",
    ]


def test_the_page_begins_with_the_table(study):
    section = page.document(study).split("## ")[1]
    assert section.startswith(
        "The answer\n\n| run | quantizer | 2 bits | 3 bits | 4 bits | 6 bits | 8 bits | 16 bits |"
    )
    assert "| **4.86M [2.56M to 19.9M]**<br>**D/N 60.8 [32 to 249]**<br>**observed** |" in section
    assert "with its 90 or 95 % interval" in section
    assert (
        "would have shown a rise of 0.05 nats per token over the second half of the range with probability 0.8"
        in section
    )
    assert "(2) the fits point too far beyond the data to be believed." in section


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_the_terminal_begins_with_the_table_at_any_width(study, width):
    console = Console(file=io.StringIO(), width=width)
    console.print(render_fit(study.table, study.fit, study.run))
    text = console.file.getvalue()
    assert text.startswith("Beyond how many tokens")
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for words in ("4.86M", "[2.56M to 19.9M]", "not before", "D = 40M (95 %)", "[64M to 100M]", "2 bits", "16 bits"):
        assert words in text


def test_the_latex_table_has_the_same_cells(study):
    text = latex.document(study)
    assert r"\bfseries 4.86M [2.56M to 19.9M] \\ \bfseries D/N 60.8 [32 to 249]" in text
    assert r"not before D = 40M (95 \%)" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}")
    assert text.index("not before") < text.index("Increase of the loss")


@pytest.mark.parametrize(("lines", "said"), [([OBSERVED], False), ([OBSERVED, NOT_BEFORE], True), ([FORECAST], True)])
def test_what_a_forecast_assumes_is_said_where_there_is_one(study, lines, said):
    [found] = answers.tables(Study(study.table, {**study.fit, "critical_tokens": lines}, study.run))
    assert any("if the run goes on as it has" in remark for remark in found.remarks) == said
