"""A comparison of two results as JUnit XML, which every CI system shows: one test case per cell.

The schema is the one of Ant's JUnit task, the strictest in use (windyroad/JUnit-Schema): a worsening is a failure, a
cell that is missing or not comparable an error, one that cannot be tested is skipped.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from ptq_eval.report.gate import words
from ptq_eval.report.gate.names import Names
from ptq_eval.results.gate.decision import Outcome
from ptq_eval.results.gate.verdict import Comparison, Judged

SUITE = "ptq-eval compare"
_ILLEGAL = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML 1.0 document may hold, such as those that colour a message on a terminal."""
_REPLACEMENT = "\ufffd"


def junit(found: Comparison, now: float | None = None) -> str:
    """The XML document; `now` is the time it is made at, in seconds."""
    names, broken = Names(found), [*found.mismatches, *found.missing]
    untested = found.of(Outcome.UNTESTED)
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        name=SUITE,
        package="ptq_eval",
        id="0",
        timestamp=time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)),
        hostname="localhost",
        tests=str(len(found.cells) + len(broken)),
        failures=str(len(found.worse)),
        errors=str(len(broken)),
        skipped=str(len(untested)),
        time="0",
    )
    about = {"base": found.base.name, "new": found.new.name, "tolerance": f"{found.rule.tolerance:g}"}
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in {**about, "level": f"{found.rule.level:g}", "judge": found.judge}.items():
        ElementTree.SubElement(properties, "property", name=name, value=value)
    for cell in found.cells:
        _judged(suite, found, cell, names)
    for one in found.mismatches:
        text = f"the {words.CONDITIONS[one.what]}: {one.base} in the old result, {one.new} in the new one"
        _error(_case(suite, one.about, names), "not comparable", text)
    for one in found.missing:
        _error(_case(suite, one.about, names), "missing", one.message or "not in the new result")
    lines = [words.headline(found, names), *words.power(found, names), *words.remarks(found, names)]
    ElementTree.SubElement(suite, "system-out").text = "\n".join(lines)
    ElementTree.SubElement(suite, "system-err")
    ElementTree.indent(root)
    text = _ILLEGAL.sub(_REPLACEMENT, ElementTree.tostring(root, encoding="unicode"))
    return f"<?xml version='1.0' encoding='UTF-8'?>\n{text}\n"


def _case(suite: ElementTree.Element, about: Mapping[str, Any], names: Names) -> ElementTree.Element:
    place = " ".join(names.place(about).split())
    return ElementTree.SubElement(suite, "testcase", classname=place, name=names.method(about), time="0")


def _judged(suite: ElementTree.Element, found: Comparison, cell: Judged, names: Names) -> None:
    case = _case(suite, cell.pair.about, names)
    if cell.outcome == Outcome.WORSE:
        text = f"worse {words.worsening(found, cell)}"
        failure = ElementTree.SubElement(case, "failure", type="worse", message=text)
        failure.text = f"{cell.pair.base:.6f} before, {cell.pair.new:.6f} now, on {cell.pair.windows[0]} windows"
    elif cell.outcome == Outcome.UNTESTED:
        ElementTree.SubElement(case, "skipped")


def _error(case: ElementTree.Element, kind: str, text: str) -> None:
    ElementTree.SubElement(case, "error", type=kind, message=" ".join(text.split()))
