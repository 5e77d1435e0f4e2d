r"""Text, numbers and tables in LaTeX: what the table of a report and a paper share.

Only booktabs is needed.  Numbers are already rounded to 0.1234(56), and two columns joined at the decimal point
(`r@{.}l`) align them.  Text may hold any character: pdfTeX's fonts draw Latin letters, of the others some have a
symbol, some lose an accent, and what is left becomes a question mark.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from ptq_eval.report.common.numbers import MISSING
from ptq_eval.report.common.tables import FLOOR, LEAD, Grid

_POWERS: dict[str, str] = dict(zip("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "varepsilon", "ζ": "zeta", "η": "eta", "θ": "theta",
    "ι": "iota", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma",
    "τ": "tau", "υ": "upsilon", "φ": "varphi", "χ": "chi", "ψ": "psi", "ω": "omega", "Γ": "Gamma", "Δ": "Delta",
    "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
_SPECIAL = {
    **{raised: f"$^{{{digit}}}$" for raised, digit in _POWERS.items()},
    **{letter: rf"$\{name}$" for letter, name in _GREEK.items()},
    **{character: "\\" + character for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "−": "$-$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "→": r"$\to$",
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "…": r"\dots{}",
    "’": "'",
}
LATIN = "ĂăĄąĆćČčĎďĐđĘęĚěĞğİıĹĺĽľŁłŃńŇňŐőŒœŔŕŘřŚśŞşŠšŢţŤťŮůŰűŸŹźŻżŽž"
"""Letters beyond Latin-1 that pdfTeX's T1 fonts have."""
UNKNOWN = "?"


def escape(text: str) -> str:
    """Plain text for LaTeX; a character that pdfTeX's fonts cannot draw becomes a question mark."""
    escaped = "".join(map(_drawn, " ".join(str(text).split())))
    if escaped.startswith(("[", "*")):
        escaped = "{}" + escaped  # else an argument of the line break before it
    return escaped.replace("--", "-{}-").replace(r"D\_crit", r"$D_{\mathrm{crit}}$")


def _drawn(character: str) -> str:
    """One character, without its accent where only that is missing."""
    if character in _SPECIAL:
        return _SPECIAL[character]
    if " " <= character <= "~" or "\xa1" <= character <= "ÿ" or character in LATIN:
        return character
    plain = [part for part in unicodedata.normalize("NFKD", character) if not unicodedata.combining(part)]
    return "".join(part if " " <= part <= "~" and part not in _SPECIAL else UNKNOWN for part in plain)


def prose(text: str) -> str:
    """`escape` for sentences: quantities and constants of laws become mathematics, a minus sign gets its length."""
    escaped = re.sub(r"(?<![\w.-])-(?=\d)", "$-$", escape(text))
    escaped = re.sub(r"\bD/N\b", "$D/N$", escaped)
    escaped = re.sub(r"\bD (=|is|at)", r"$D$ \1", escaped)
    return re.sub(r"\b(gamma|C)\\_(\w+)\b", lambda found: symbol(f"{found[1]}_{found[2]}"), escaped)


def symbol(name: str) -> str:
    r"""A constant's name as mathematics: `gamma_D` is $\gamma_{D}$."""
    parts = [rf"\{part}" if part in _GREEK.values() else part for part in name.split("_") if part]
    if not parts or not all(re.fullmatch(r"\\?[A-Za-z0-9]+", part) for part in parts):
        return escape(name)
    low = ",".join(part if len(part) == 1 or part[0] == "\\" else rf"\mathrm{{{part}}}" for part in parts[1:])
    return f"${parts[0]}_{{{low}}}$" if low else f"${parts[0]}$"


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


def stacked(lines: Sequence[str]) -> str:
    """Lines of LaTeX under each other in one cell of a table."""
    if len(lines) == 1:
        return lines[0]
    return r"\begin{tabular}[t]{@{}l@{}}" + r" \\ ".join(lines) + r"\end{tabular}"


def batches(items: Sequence[Any], most: int) -> list[Sequence[Any]]:
    """`items` in parts of at most `most`."""
    return [items[start : start + most] for start in range(0, len(items), most)]


def tabular(columns: str, header: Iterable[str], rows: Iterable[str]) -> str:
    """A table with booktabs' rules: `header` and `rows` are lines of LaTeX that end their row themselves."""
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *header, r"\midrule", *rows, r"\bottomrule"]
    return "\n".join([*lines, r"\end{tabular}"])


def grid_tabular(table: Grid) -> str:
    """The deltas of one run: a row per checkpoint, a column per configuration and bit-width."""
    rows = (
        " & ".join([*(escape(text) for text in row[: len(LEAD)]), *map(cell, row[len(LEAD) :])]) + r" \\"
        for row in table.rows
    )
    return tabular("r" * len(LEAD) + "r@{.}l" * len(table.columns), _header(table), rows)


def _header(table: Grid) -> list[str]:
    first, rules, at = [""] * len(LEAD), [], len(LEAD) + 1
    for label in table.labels:
        width = 2 * sum(name == label for name, _ in table.columns)
        first.append(rf"\multicolumn{{{width}}}{{c}}{{{escape(label)}}}")
        rules.append(rf"\cmidrule(lr){{{at}-{at + width - 1}}}")
        at += width
    second = [
        "checkpoint", "$D$", "$D/N$", r"$L$", *(rf"\multicolumn{{2}}{{c}}{{{bits} bits}}" for _, bits in table.columns)
    ]  # fmt: skip
    return [" & ".join(first) + r" \\", "".join(rules), " & ".join(second) + r" \\"]
