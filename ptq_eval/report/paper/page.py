r"""The paper of an output folder: what its project (`project`) holds.

The template of main.tex is `string.Template` with @ for $: it has blanks, no loop and no condition.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import Any

from ptq_eval.laws.findings import Caution
from ptq_eval.laws.turning.verdict import VerdictKind
from ptq_eval.report.common.data import Study
from ptq_eval.report.common.latex import escape
from ptq_eval.report.paper import figures, project, tables, words, works
from ptq_eval.report.paper.names import PREFIX, spoken
from ptq_eval.report.paper.numbers import Numbers, line, numbers
from ptq_eval.report.paper.project import MAIN, Written
from ptq_eval.report.run.words import sentences

_PLAIN_CLASSES = ("article", "report", "scrartcl", "extarticle")
"""Classes without a layout of their own, which get margins here."""
_SAID = (VerdictKind.OBSERVED, VerdictKind.FORECAST)
MOST_FINDINGS = 8
"""Lines whose verdict is in the text."""
_ABSTRACT_FIRST = ("acm", "amsart", "revtex")
"""Beginnings of the names of classes that want the abstract before \\maketitle."""
_LAYOUT = r"""\usepackage[a4paper,margin=18mm]{geometry}
\setlength{\belowcaptionskip}{4pt}
\raggedbottom
"""


class _Blanks(Template):
    delimiter = "@"


def write(
    folder: Path,
    study: Study,
    theory: Mapping[str, Any] | None,
    documentclass: str = "[twocolumn,10pt]{article}",
    renamed: Mapping[str, str] | None = None,
) -> Written:
    """Write the project; main.tex only where there is none.  Raises OutputFolderError, OutputFullError."""
    project.require_own(folder)
    found, titles = numbers(study)
    drawn, data, appendix = figures.drawn(study, theory)
    found.add("TurnPanel", _panel(study))
    texts = {
        "findings.tex": _findings(study, titles),
        "limitations.tex": _limitations(study, found),
        "appendix.tex": "".join(_figure(one) for one in appendix),
        **{f"tables/{name}.tex": text for name, text in tables.files(study, titles).items()},
    }
    main = main_text(documentclass, wide=data["delta"]["quantizer"].nunique() > 1)
    written = project.write(folder, main, found, texts, drawn, data)
    return replace(written, renamed=renamed or {}, uncited=works.unknown(study))


def main_text(documentclass: str, *, wide: bool) -> str:
    r"""main.tex with what follows \documentclass; wide: whether the figure of δ is as wide as the page."""
    name = re.sub(r"\[[^]]*\]|[{}\s]", "", documentclass)
    layout = _LAYOUT if name in _PLAIN_CLASSES else ""
    template = Path(__file__).with_name(MAIN).read_text(encoding="utf-8")
    title = "\\maketitle\n"
    before, after = ("", title) if name.startswith(_ABSTRACT_FIRST) else (title + "\n", "")
    blanks = {"layout": layout, "star": "*" if wide else "", "before": before, "after": after}
    return _Blanks(template).substitute(documentclass=documentclass, **blanks)


def _panel(study: Study) -> str:
    found = figures.telling(study)
    return f"{found[0]}, {found[1]}" if found else "the first run and quantizer"


def _findings(study: Study, titles: Mapping[str, str]) -> str:
    """The verdicts on lines with a turn that was observed, or else is forecast, by run; the table has the others."""
    parts: dict[str, list[str]] = {}
    shown = [(run, entry) for run, _, _, entry in sentences(study) if entry.get("verdict_kind") in _SAID]
    for run, entry in sorted(shown, key=lambda one: _SAID.index(one[1]["verdict_kind"]))[:MOST_FINDINGS]:
        name = line(study.label_of(entry), float(entry["bits"]), run)
        said = rf"\emph{{\{PREFIX}Line{name}{{}}.}} \{PREFIX}Verdict{name}{{}}"
        parts.setdefault(run, []).append(said)
    text = "\n".join(rf"\paragraph{{{titles.get(run, escape(run))}.}} {' '.join(said)}" for run, said in parts.items())
    return text + ("\n\nTable~\\ref{tab:critical} has the others.\n" if len(shown) > MOST_FINDINGS else "\n")


def _limitations(study: Study, found: Numbers) -> str:
    items = []
    for name, text in words.limitations(study):
        items.append(rf"\item {found.add('Limit' + spoken(name), text)}")
        if name in (Caution.SCHEDULE, Caution.MIXED_PHASES):
            items[-1] += f" See{works.cited([works.of_schedule(study)])}."
    return "\n".join([r"\begin{itemize}", *items, r"\end{itemize}", ""])


def _figure(one: figures.Figure) -> str:
    star = "*" if one.wide else ""
    return "\n".join(
        [
            rf"\begin{{figure{star}}}[htbp]",
            r"\centering",
            rf"\ptqfit{{\includegraphics{{generated/figures/{one.name}}}}}",
            rf"\caption{{{one.caption}.}}",
            rf"\end{{figure{star}}}",
            "",
        ]
    )


def lines(written: Written) -> Iterator[str]:
    """What the command line says of a paper."""
    yield f"Written: {len(written.paths)} files below {written.folder}"
    if written.kept:
        yield "main.tex is yours and stays as it is; generated/main.tex is what it would be now"
    else:
        yield "main.tex is yours from now on; generated/ is written anew each time"
    for name in written.gone:
        yield rf"main.tex uses \{name}, whose result is gone: it is set as ??"
    for run, name in written.renamed.items():
        yield f"{run!r} is called {name!r}: pdfTeX's fonts cannot draw it; --rename chooses another name"
    if written.uncited:
        yield f"no reference is known for {', '.join(written.uncited)}: add one to the text"
