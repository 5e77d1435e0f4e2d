"""Golden: papers compiled by pdfTeX itself: nothing undefined, nothing off the page, main.tex the author's."""

from __future__ import annotations

import re
import subprocess

import pytest

import ptq_eval
from ptq_eval.errors import LatexError
from ptq_eval.jobs import paper as job
from ptq_eval.report.common.latex import _GREEK, LATIN, escape
from results.paper import build
from tests.report.paper.support import EMBEDDED, ROOT, synthetic, ugly

pytestmark = [pytest.mark.latex, pytest.mark.drawn("pdf")]

FOLDERS = {
    "embedded": lambda out: EMBEDDED,
    "formats": lambda out: ROOT / "results" / "formats",
    "ugly": ugly,
    "two checkpoints, one bit-width": lambda out: synthetic(out, ratios=(20, 50), bits=(4,)),
}
OVERFULL = 5.0
"""Points that a line may be too long."""


def compiled(out, folder, **options):
    """The PDF and the log of LaTeX."""
    pdf = ptq_eval.paper(out, folder, **options).pdf
    return pdf, (folder / "main.log").read_text(errors="replace")


def faults(log):
    """What LaTeX complains about that a reader would see."""
    wide = [float(points) for points in re.findall(r"Overfull \\hbox \(([\d.]+)pt too wide", log)]
    found = [f"overfull by {points} pt" for points in wide if points > OVERFULL]
    found += re.findall(r"LaTeX Warning: (?:Reference|Citation)[^.]*undefined", log)
    found += re.findall(r"(?:Float too large|Missing character|Overfull \\vbox)[^.]*", log)
    return found + re.findall(r"Warning: Citation[^.]*", log)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_paper_compiles_without_faults(name, tmp_path):
    pdf, log = compiled(FOLDERS[name](tmp_path / "out"), tmp_path / "paper")
    assert faults(log) == []
    assert pdf.read_bytes().startswith(b"%PDF")


def test_another_class_compiles_too(tmp_path):
    _, log = compiled(synthetic(tmp_path / "out", ratios=(20, 50)), tmp_path / "paper", documentclass="[11pt]{amsart}")
    assert faults(log) == []


def test_an_author_may_rewrite_everything_and_a_mistake_is_named(tmp_path):
    out, folder = synthetic(tmp_path / "out", runs=("small",), ratios=(20, 50)), tmp_path / "paper"
    ptq_eval.paper(out, folder, compile=False)
    own = r"""\documentclass{article}
\input{generated/numbers}
\begin{document}
\ptqRunSmall{} loses \ptqDeltaGptqTwoBitsSmall{} nats per token, and \ptqDeltaNobodyTwoBitsSmall.
%s
\end{document}
"""
    (folder / "main.tex").write_text(own % "")
    _, log = compiled(out, folder)
    assert faults(log) == []
    (folder / "main.tex").write_text(own % r"\undefinedhere")
    with pytest.raises(LatexError, match=r"main.tex:5: Undefined control sequence"):
        ptq_eval.paper(out, folder)


def test_every_character_that_is_escaped_can_be_set(tmp_path):
    text = "".join(chr(code) for code in range(32, 0x180)) + LATIN + "".join(_GREEK) + "×±·−≤≥→–—…’⁻⁰¹²³⁴⁵⁶⁷⁸⁹训练"
    lines = "\n\n".join(escape(text[at : at + 40]) for at in range(0, len(text), 40))
    head = "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage[utf8]{inputenc}\\usepackage{lmodern}"
    (tmp_path / "main.tex").write_text(f"{head}\\begin{{document}}\n{lines}\n\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120)
    log = done.stdout.decode(errors="replace")
    assert done.returncode == 0, log[-1500:]
    assert "Missing character" not in log


def test_the_paper_of_the_study_compiles_without_faults(tmp_path):
    """6 to 8 pages, less than 15 MB, nothing undefined."""
    build.build(tmp_path / "paper")
    pdf = job.compiled(tmp_path / "paper")
    log = (tmp_path / "paper" / "main.log").read_text(errors="replace")
    assert faults(log) == []
    assert "??" not in (tmp_path / "paper" / "generated" / "numbers.tex").read_text()
    assert 6 <= int(re.search(r"Output written on main.pdf \((\d+) pages", log)[1]) <= 8
    assert pdf.stat().st_size < 15e6
