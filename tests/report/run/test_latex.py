"""Contract: the LaTeX table compiles alone, in one run of pdflatex, and fits the page."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest

from ptq_eval.report.common.data import Study
from ptq_eval.report.run import latex
from tests.report.synthetic import make_table


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_the_latex_table_compiles_alone_and_fits_the_page(tmp_path):
    table = make_table(ratios=tuple(np.geomspace(5, 600, 20).round(1)))
    table["run"] = table["run"].replace({"small": "s&m_a%l{#}~^\\$"})
    (tmp_path / "degradation.tex").write_text(latex.document(Study(table, {}, {})))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "degradation.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull \\hbox" not in done.stdout
    assert "Rerun" not in done.stdout
    assert (tmp_path / "degradation.pdf").exists()


def test_tables_wider_or_longer_than_a_page_are_continued():
    table = make_table(runs=("small",), ratios=tuple(range(5, 55)), bits=(2, 3, 4, 5, 6, 7, 8))
    tex = latex.document(Study(table, {}, {}))
    assert tex.count(r"\begin{table}") == 2 * 3
    assert tex.count(r"\\") == 50 * 3 + 2 * 6
