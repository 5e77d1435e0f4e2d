r"""`numbers.tex`: every number and sentence of the paper that depends on the results, as a macro.

The text of a paper holds no digit of a result, so that it stays right when measurements are added.  Names begin with
`\ptq` and can be read aloud (`names`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ptq_eval.report.common.data import Study
from ptq_eval.report.common.latex import escape, prose
from ptq_eval.report.common.numbers import MISSING, OPEN, bounds, count, end, number, percent, plus_minus, ratio, short
from ptq_eval.report.common.tables import fit_name
from ptq_eval.report.paper import methods, words
from ptq_eval.report.paper.names import PREFIX, spoken, unique
from ptq_eval.report.run.words import sentences

_HEAD = """\
% Written by the program, and written anew each time: edit main.tex instead.
"""


class Numbers:
    """Macros by name, without their backslash, in order; `add` makes a name that no other has."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self._about: dict[str, str] = {}

    def add(self, name: str, text: str, about: str = "") -> str:
        r"""Add `\ptqNAME`, which expands to plain text; its LaTeX."""
        return self.add_latex(name, prose(text), about)

    def add_latex(self, name: str, text: str, about: str = "") -> str:
        r"""The same for text that is LaTeX already."""
        name = unique(PREFIX + name, self.texts)
        self.texts[name], self._about[name] = text, about
        return rf"\{name}{{}}"

    def file(self, gone: Mapping[str, str] | None = None) -> str:
        """The content of numbers.tex.  gone: macros of the author's text whose results are gone."""
        lines = [_HEAD]
        for name, text in self.texts.items():
            about = f"  % {' '.join(self._about[name].split())}" if self._about[name] else ""
            lines.append(rf"\newcommand{{\{name}}}{{{text}}}{about}")
        if gone:
            lines.append("\n% Used by main.tex, and no longer among the results:")
            lines += [rf"\newcommand{{\{name}}}{{{text}}}" for name, text in gone.items()]
        return "\n".join(lines) + "\n"


def numbers(study: Study) -> tuple[Numbers, dict[str, str]]:
    """All macros of a study, and the LaTeX of each trajectory's name and title."""
    found = Numbers()
    _of_study(found, study)
    titles = _of_runs(found, study)
    _of_deltas(found, study)
    _of_turns(found, study)
    _of_fits(found, study)
    return found, titles


def _of_study(found: Numbers, study: Study) -> None:
    for name, text in {**words.facts(study), **methods.facts(study)}.items():
        found.add(name, text)
    for name, text in methods.cited_facts(study).items():
        found.add_latex(name, text)


def _of_runs(found: Numbers, study: Study) -> dict[str, str]:
    """The names of trajectories and their range; the LaTeX of each name and title."""
    titles = {}
    for run in study.runs:
        macro = found.add(f"Run{spoken(run)}", run, "the run's name; --rename changes it")
        rows = study.baseline[study.baseline["trajectory"] == run]
        title = study.title(run)
        titles |= {run: macro, title: f"{macro} {escape(title.removeprefix(run))}".rstrip()}
        if rows.empty:
            continue
        first, last = rows.iloc[0], rows.iloc[-1]
        found.add(f"Params{spoken(run)}", count(last["params"]), f"N of {run}")
        found.add(f"FirstTokens{spoken(run)}", count(first["tokens"]), "D of its first checkpoint")
        found.add(f"LastTokens{spoken(run)}", count(last["tokens"]), "D of its last checkpoint")
        found.add(f"LastRatio{spoken(run)}", ratio(last["tokens_per_param"]), "D/N of its last checkpoint")
        for name, row in (("First", first), ("Last", last)):
            found.add(f"{name}Loss{spoken(run)}", f"{row['loss_fp']:.4f}", "full-precision loss there, nats per token")
    return titles


def line(label: str, bits: float, run: str) -> str:
    """The name of a trajectory, configuration and bit-width, as part of a macro's."""
    return spoken(label, f"{bits:.0f}", "bit" if bits == 1 else "bits", run)


def _of_deltas(found: Numbers, study: Study) -> None:
    for row in words.last(study).to_dict("records"):
        about = f"delta of {row['label']}, {row['bits']:.0f} bits, {row['checkpoint']}, nats per token"
        name = line(row["label"], row["bits"], row["trajectory"])
        found.add(f"Delta{name}", plus_minus(row["delta"], row["delta_se"]), about)


def _of_turns(found: Numbers, study: Study) -> None:
    for run, what, text, entry in sentences(study):
        name = line(study.label_of(entry), number(entry.get("bits")), run)
        found.add(f"Line{name}", what, f"the line of {run}")
        found.add(f"Verdict{name}", text)
        for kind, value in _answer(entry):
            if value not in (MISSING, OPEN):
                found.add(f"{kind}{name}", value, f"{what}, {run}")


def _answer(entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(kind, number) of everything known about a turn."""
    value, low, high = bounds(entry.get("answer"))
    params = number(entry.get("params"))
    yield "TurnTokens", count(value)
    yield "TurnRatio", ratio(value / params)
    yield "TurnLow" if math.isfinite(value) else "NotBeforeTokens", end(low)
    if not math.isfinite(value):
        yield "NotBeforeRatio", ratio(low / params)
    yield "TurnHigh", end(high)
    yield "TurnLevel", percent((entry.get("answer") or {}).get("level"))
    if entry.get("verdict_kind") == "observed":
        yield "Rise", plus_minus(entry.get("rise"), entry.get("rise_se"))
        yield "RiseP", short(entry.get("adjusted_p"))


def _of_fits(found: Numbers, study: Study) -> None:
    for entry in study.fits:
        about = fit_name(study, entry)
        for constant, value in (entry.get("parameters") or {}).items():
            for suffix, one in zip(("", "Low", "High"), bounds(value)):
                if math.isfinite(one):
                    found.add(f"Fit{spoken(constant)}{spoken(about)}{suffix}", short(one), f"{constant} of {about}")
        for suffix, text in (("Scatter", percent(entry.get("scatter"))), ("Points", short(entry.get("n_points")))):
            if text != MISSING:
                found.add(f"Fit{suffix}{spoken(about)}", text, about)
