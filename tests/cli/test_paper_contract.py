"""Contract: `ptq-eval paper` on a folder that was really measured: what it says, leaves and refuses."""

import json
import shutil

import pytest


def test_a_measured_folder_becomes_a_paper_and_main_stays_the_authors(ptq_eval, measured, tmp_path):
    first = ptq_eval("paper", measured, "-o", "paper", "--no-compile", "--rename", "tiny=A, B")
    assert first.code == 0, first.err
    assert "main.tex is yours from now on" in first.out
    (tmp_path / "work" / "paper" / "main.tex").write_text("mine \\ptqDeltaNobody")
    again = ptq_eval("paper", measured, "-o", "paper", "--no-compile", "--rename", "tiny=A, B")
    assert again.code == 0
    assert "main.tex is yours and stays as it is" in again.out
    assert "main.tex uses \\ptqDeltaNobody" in again.out
    assert (tmp_path / "work" / "paper" / "main.tex").read_text() == "mine \\ptqDeltaNobody"


@pytest.mark.drawn("pdf")
def test_without_latex_the_sources_are_left_and_the_code_is_56(ptq_eval, measured, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    ptq_eval("paper", measured, "-o", "paper").refuses(56, "latexmk", "apt-get install", "texlive-latex-recommended")
    assert (tmp_path / "work" / "paper" / "generated" / "numbers.tex").exists()


def test_what_is_no_finished_folder_is_refused(ptq_eval, measured, tmp_path):
    ptq_eval("paper", tmp_path / "nowhere", "-o", "paper").refuses(10, "no such folder", "ptq-eval run")
    (tmp_path / "empty").mkdir()
    ptq_eval("paper", tmp_path / "empty", "-o", "paper").refuses(25, "no report", "ptq-eval report OUT")
    ptq_eval("paper", measured, "-o", measured).refuses(32, "other files")
    ptq_eval("paper", measured, "-o", "paper", "--rename", "tinny=x").refuses(2, "did you mean 'tiny'")
    ptq_eval("paper", measured, "-o", "paper", "--style", "three").refuses(2, "onecolumn")
    old = shutil.copytree(measured, tmp_path / "old")
    fit = json.loads((old / "fit.json").read_text())
    (old / "fit.json").write_text(json.dumps({**fit, "records": "0" * 16}))
    ptq_eval("paper", old, "-o", "paper").refuses(21, "not of the measurements", "ptq-eval report OUT")
    (old / "fit.json").write_text("{")
    ptq_eval("paper", old, "-o", "paper").refuses(21, "fit.json", "damaged")
    assert not (tmp_path / "work" / "paper").exists()
