"""Contract: many number formats in one report: panels that can be read, tables by format, and one axis of bits."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest

from ptq_eval.report import with_texts, write
from ptq_eval.report.common.data import Study
from ptq_eval.report.run import answers, delta_figure, formats, formats_figure, loss_figure, page
from tests.report.synthetic import make_fit, make_run, make_table

NAMED = {"q4_0": (4.5, 0.0074), "mxfp4": (4.25, 0.0132), "nvfp4": (4.5, 0.0091), "nf4": (5.0, 0.0075)}
CURVE = {"C": 0.05, "gamma": 0.5, "gamma_post": 0.9}


def with_formats():
    """Four formats of 4 bits beside the integers of two methods, each with a size of block of its own."""
    table = make_table(runs=("small",), ratios=(20, 50, 200), quantizers=("rtn", "gptq"), bits=(2, 3, 4))
    fit = make_fit(table)
    rows, critical = [table], []
    for i, (name, (bits, error)) in enumerate(NAMED.items()):
        four = table[table["bits"] == 4]
        about = {"format": name, "effective_bits": bits, "gaussian_mse": error, "symmetric": True}
        about |= {"group_size": (32, 32, 16, 64)[i], "key": four["key"] + name, "delta": four["delta"] * (1 + i)}
        rows.append(four.assign(**about))
        own = {"format": name, "symmetric": True, "group_size": about["group_size"]}
        critical += [{**entry, **own} for entry in fit["critical_tokens"] if entry["bits"] == 4]
    fit["critical_tokens"] += critical
    return pd.concat(rows, ignore_index=True), with_texts(fit)


@pytest.fixture(scope="module")
def study():
    table, fit = with_formats()
    return Study(table, fit, make_run(table))


def test_figures_have_panels_of_integers_where_there_are_many_formats(study):
    assert len(study.labels) == 10
    assert study.panels == ["rtn", "gptq"]
    assert set(loss_figure.data(study)["quantizer"]) == {"rtn", "gptq"}
    assert set(delta_figure.data(study)["quantizer"]) == {"rtn", "gptq"}
    few = study.table[study.table["format"].isin(["", "int", "nvfp4"])]
    assert replace(study, table=few).panels == ["rtn", "rtn nvfp4", "gptq", "gptq nvfp4"]
    none = study.table[study.table["format"] != "int"]
    assert len(replace(study, table=none).panels) == 6


def test_integers_and_named_formats_have_tables_of_answers_of_their_own(study):
    first, second = answers.tables(study)
    assert (first.header, [label for _, label, _ in first.rows]) == (
        ["run", "quantizer", "2 bits", "3 bits", "4 bits"],
        ["rtn", "gptq"],
    )
    assert second.header == ["run", "format", "rtn", "gptq"]
    assert [name for _, name, _ in second.rows] == ["mxfp4", "nvfp4", "q4_0", "nf4"]
    assert first.footnotes == second.footnotes


def test_the_page_compares_formats_in_order_of_stored_bits(study):
    text = page.document(study)
    section = text.split(f"## {formats.TITLE}")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    assert lines[0] == "| format | bits | effective bits | ideal bits | δ, rtn | δ, gptq |"
    names = [line.split(" | ")[0][2:] for line in lines[2:]]
    assert names == ["int2", "int3", "int4", "mxfp4", "nvfp4", "q4_0", "nf4"]
    assert "formats: mxfp4, nvfp4, q4_0, nf4; " in text
    assert "Panels are of rtn, gptq; other formats are compared below." in text
    wide = [
        line for line in text.split("## Degradation")[1].split("\n## ")[0].splitlines() if line.startswith("| 781 |")
    ]
    assert max(line.count("|") for line in wide) <= page.MAX_COLUMNS + 5
    assert sum(line.count("(") for line in wide) == 14  # every delta of one checkpoint, in some part


def test_the_figure_shows_every_format_and_the_law_on_its_axis(study):
    table = formats_figure.data(study)
    assert set(table["kind"]) == {"measured"}
    assert len(table) == 14
    at = table[(table["name"] == "nvfp4") & (table["method"] == "rtn")].iloc[0]
    assert (at["effective_bits"], at["ideal_bits"]) == (4.5, pytest.approx(-0.5 * math.log2(0.0091)))
    law = {"parameters": {name: {"value": value} for name, value in CURVE.items()}, "law": "kumar_ptq_ratio"}
    family = {"quantizer": "rtn", "options": "{}", "calibration": "shared", "format": "", **law}
    found = formats_figure.data(replace(study, fit={**study.fit, "fits": [family], "bits_axis": "gaussian"}))
    curve = found[found["kind"] == "fit"]
    assert set(curve["method"]) == {"rtn"}
    ideal = curve["ideal_bits"].astype(float)
    assert ideal.between(table["ideal_bits"].min(), table["ideal_bits"].max()).all()
    expected = CURVE["C"] * (200**0.5) * (-ideal / CURVE["gamma_post"]).map(math.exp)
    assert curve["delta"].astype(float).tolist() == pytest.approx(expected.tolist(), rel=0.01)


@pytest.mark.drawn("png")
def test_the_figure_is_written_where_formats_are_and_only_there(study, tmp_path):
    named = {path.name for path in write(tmp_path, study.table, study.fit, {})}
    assert {"delta_vs_bits.png", "delta_vs_bits.csv"} <= named
    plain = study.table[study.table["format"].isin(["", "int"])]
    assert "delta_vs_bits" not in formats.section(replace(study, table=plain))
    assert not replace(study, table=plain).has_formats
