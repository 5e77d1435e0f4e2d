r"""The answers and the degradation tables as a LaTeX document that compiles alone.

Only booktabs and geometry are needed, which every TeX Live has.  Pages are landscape; a table that is wider than
`MAX_COLUMNS` deltas or longer than `MAX_ROWS` checkpoints is continued in a further one.  (longtable would break
pages by itself, but sets its columns right in the second run only.)  A table can be taken out of the document and
used in a paper as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from ptq_eval.report.common.data import Study
from ptq_eval.report.common.latex import batches, escape, grid_tabular, stacked, tabular
from ptq_eval.report.common.tables import FLOOR, FLOOR_NOTE, PARTIAL, Grid, grid
from ptq_eval.report.run import answers
from ptq_eval.report.run.words import early

MAX_COLUMNS, MAX_ROWS = 12, 40
MAX_ANSWERS = 4
"""Bit-widths or methods that a table of answers has beside each other on a page."""

_HEAD = r"""% Compile with: pdflatex degradation.tex
\documentclass[a4paper,10pt]{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\IfFileExists{lmodern.sty}{\usepackage{lmodern}}{}
\usepackage[landscape,margin=12mm]{geometry}
\usepackage{booktabs}
\setlength{\tabcolsep}{2pt}
\setlength{\belowcaptionskip}{5pt}
\begin{document}
"""


def document(study: Study) -> str:
    """The whole document: one table per run, split where it is larger than a page."""
    parts = [_answers(one.part(some)) for one in answers.tables(study) for some in batches(one.columns, MAX_ANSWERS)]
    parts += [_table(study, part) for run in study.runs for part in split(grid(study, run))]
    return _HEAD + "\n\\clearpage\n".join(parts) + "\n\\end{document}\n"


def split(table: Grid) -> Iterator[Grid]:
    """Tables of at most MAX_COLUMNS deltas and MAX_ROWS checkpoints; a configuration is never torn apart."""
    for part in table.split(MAX_COLUMNS):
        for start in range(0, len(part.rows), MAX_ROWS):
            yield replace(part, rows=part.rows[start : start + MAX_ROWS])


def _answers(found: answers.Answers) -> str:
    """The table of answers; what was observed in bold."""
    return "\n".join(
        [
            r"\begin{table}[p]",
            r"\centering\footnotesize",
            r"\setlength{\tabcolsep}{5pt}",
            rf"\caption{{{' '.join(map(escape, answers.notes(found)))}}}",
            answers_tabular(found),
            r"\end{table}",
        ]
    )


def answers_tabular(found: answers.Answers, names: Mapping[str, str] | None = None, end: str = r" \\[2pt]") -> str:
    """The cells of a table of answers.  names: LaTeX for some of its runs; end: of each row."""
    rows = (
        " & ".join([_run(run, names or {}), escape(label), *map(_answer_cell, cells)]) + end
        for run, label, cells in found.rows
    )
    return tabular("l" * len(found.header), [" & ".join(map(escape, found.header)) + r" \\"], rows)


def _run(text: str, names: Mapping[str, str]) -> str:
    return stacked([names.get(line, escape(line)) for line in text.split("\n")])


def _answer_cell(cell: answers.Cell) -> str:
    bold = r"\bfseries " if cell.observed else ""
    return stacked([bold + escape(line) for line in cell.lines])


def _table(study: Study, table: Grid) -> str:
    caption = (
        rf"Increase of the loss by quantization, $\delta$ in nats per token, for run "
        rf"{escape(table.title)}. $0.1234(56)$ means $0.1234 \pm 0.0056$, one standard error "
        rf"of the paired difference over evaluation windows. Protocol: {escape(study.protocols)}."
    )
    if any(text.endswith(PARTIAL) for row in table.rows for text in row):
        caption += r" $^{*}$ Some layers were left in full precision."
    if any(FLOOR in text for row in table.rows for text in row):
        caption += rf" A $\delta$ marked $^{{\circ}}$ {escape(FLOOR_NOTE)}."
    return "\n".join(
        [
            r"\begin{table}[p]",
            r"\centering\footnotesize",
            rf"\caption{{{caption}}}",
            grid_tabular(table),
            *([rf"\par\smallskip {escape(early(study))}"] if early(study) else []),
            r"\end{table}",
        ]
    )
