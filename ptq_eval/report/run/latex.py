r"""The answers and the degradation tables as a LaTeX document that compiles alone.

Only booktabs and geometry are needed, which every TeX Live has: numbers are already rounded to 0.1234(56), and
two columns joined at the decimal point (`r@{.}l`) align them.  Pages are landscape; a table that is wider than
`MAX_COLUMNS` deltas or longer than `MAX_ROWS` checkpoints is continued in a further one.  (longtable would break
pages by itself, but sets its columns right in the second run only.)  A table can be taken out of the document and
used in a paper as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from ptq_eval.report.common.data import Study
from ptq_eval.report.common.numbers import MISSING
from ptq_eval.report.common.tables import FLOOR, FLOOR_NOTE, LEAD, PARTIAL, Grid, grid
from ptq_eval.report.run import answers
from ptq_eval.report.run.words import early

MAX_COLUMNS, MAX_ROWS = 12, 40
MAX_ANSWERS = 4
"""Bit-widths or methods that a table of answers has beside each other on a page."""

_POWERS = dict(zip("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
_SPECIAL = {
    **{raised: f"$^{{{digit}}}$" for raised, digit in _POWERS.items()},
    **{character: "\\" + character for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "δ": r"$\delta$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "–": r"\textendash{}",
    "’": "'",
}

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


def escape(text: str) -> str:
    """Plain text for LaTeX; characters that pdflatex's default fonts lack become a question mark."""
    escaped = "".join(_SPECIAL.get(character, character) for character in " ".join(str(text).split()))
    drawn = "".join(c if " " <= c <= "~" or "À" <= c <= "ÿ" else "?" for c in escaped)
    return drawn.replace("--", "-{}-").replace(r"D\_crit", r"$D_{\mathrm{crit}}$")


def cell(text: str) -> str:
    """A number such as `-0.123(45)` as two columns joined at the point, anything else centred over both."""
    match = re.fullmatch(r"(-?)(\d+)\.(\d+(?:\(\d+\))?)(°?\*?)", text)
    if match:
        minus, whole, fraction, marks = match.groups()
        return f"{'$-$' if minus else ''}{whole} & {fraction}{_marks(marks)}"
    power = re.fullmatch(rf"(.+)×10([{''.join(_POWERS)}]+)(°?\*?)", text)
    if power:
        raised = "".join(_POWERS[digit] for digit in power[2])
        text = rf"${power[1]}\times10^{{{raised}}}${_marks(power[3])}"
        return rf"\multicolumn{{2}}{{c}}{{{text}}}"
    return rf"\multicolumn{{2}}{{c}}{{{'--' if text == MISSING else escape(text)}}}"


def _marks(marks: str) -> str:
    """`°*` as superscripts."""
    return "$^{" + marks.replace(FLOOR, r"\circ") + "}$" if marks else ""


def document(study: Study) -> str:
    """The whole document: one table per run, split where it is larger than a page."""
    parts = [_answers(one.part(some)) for one in answers.tables(study) for some in _batches(one.columns, MAX_ANSWERS)]
    parts += [_table(study, part) for run in study.runs for part in split(grid(study, run))]
    return _HEAD + "\n\\clearpage\n".join(parts) + "\n\\end{document}\n"


def split(table: Grid) -> Iterator[Grid]:
    """Tables of at most MAX_COLUMNS deltas and MAX_ROWS checkpoints; a configuration is never torn apart."""
    for part in table.split(MAX_COLUMNS):
        for start in range(0, len(part.rows), MAX_ROWS):
            yield replace(part, rows=part.rows[start : start + MAX_ROWS])


def _batches(items: list[str], most: int) -> list[list[str]]:
    return [items[start : start + most] for start in range(0, len(items), most)]


def _answers(found: answers.Answers) -> str:
    """The table of answers; what was observed in bold."""
    rows = (
        " & ".join([escape(run), escape(label), *map(_answer_cell, cells)]) + r" \\[2pt]"
        for run, label, cells in found.rows
    )
    return "\n".join(
        [
            r"\begin{table}[p]",
            r"\centering\footnotesize",
            r"\setlength{\tabcolsep}{5pt}",
            rf"\caption{{{' '.join(map(escape, answers.notes(found)))}}}",
            rf"\begin{{tabular}}{{{'l' * len(found.header)}}}",
            r"\toprule",
            " & ".join(map(escape, found.header)) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _answer_cell(cell: answers.Cell) -> str:
    bold = r"\bfseries " if cell.observed else ""
    lines = r" \\ ".join(bold + escape(line) for line in cell.lines)
    return rf"\begin{{tabular}}[t]{{@{{}}l@{{}}}}{lines}\end{{tabular}}"


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
    rows = (
        " & ".join([*(escape(text) for text in row[: len(LEAD)]), *map(cell, row[len(LEAD) :])]) + r" \\"
        for row in table.rows
    )
    return "\n".join(
        [
            r"\begin{table}[p]",
            r"\centering\footnotesize",
            rf"\caption{{{caption}}}",
            rf"\begin{{tabular}}{{{'r' * len(LEAD) + 'r@{.}l' * len(table.columns)}}}",
            rf"\toprule{_header(table)}\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            *([rf"\par\smallskip {escape(early(study))}"] if early(study) else []),
            r"\end{table}",
        ]
    )


def _header(table: Grid) -> str:
    first, rules, at = [""] * len(LEAD), [], len(LEAD) + 1
    for label in table.labels:
        width = 2 * sum(name == label for name, _ in table.columns)
        first.append(rf"\multicolumn{{{width}}}{{c}}{{{escape(label)}}}")
        rules.append(rf"\cmidrule(lr){{{at}-{at + width - 1}}}")
        at += width
    second = [
        "checkpoint", "$D$", "$D/N$", r"$L$", *(rf"\multicolumn{{2}}{{c}}{{{bits} bits}}" for _, bits in table.columns)
    ]  # fmt: skip
    return "\n" + " & ".join(first) + r" \\" + "\n" + "".join(rules) + "\n" + " & ".join(second) + r" \\" + "\n"
