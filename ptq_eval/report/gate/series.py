"""The losses of the new result as github-action-benchmark reads them: its tool `customSmallerIsBetter`.

That action draws a value over commits and alerts where it rises by a ratio.  So the value is the loss after
quantization, which is positive and never near zero, and not δ.  The range is the error of the paired difference: from
commit to commit the windows stay the same, and the error of the loss itself, many times larger, does too.
"""

from __future__ import annotations

import math
from typing import Any

from ptq_eval.report.common.numbers import rough
from ptq_eval.report.gate.names import Names
from ptq_eval.results.gate.decision import Outcome
from ptq_eval.results.gate.verdict import Comparison, Judged


def entries(found: Comparison) -> list[dict[str, Any]]:
    """[{name, unit, value, range, extra}], one for each cell whose loss is finite."""
    names = Names(found)
    return [_entry(cell, names) for cell in found.cells if math.isfinite(cell.pair.new)]


def _entry(cell: Judged, names: Names) -> dict[str, Any]:
    pair = cell.pair
    evidence = pair.changed if cell.outcome == Outcome.SAME else pair.evidence
    about = f"{pair.windows[0]} windows, old {pair.base:.6g}, change {evidence.worsening:+.3g}"
    name, unit, value = names.of(pair.about), "nats/token", pair.new
    if "task" in pair.about:
        about = about.replace("windows", "documents")
        unit = "nats" if pair.about["nats"] else "share"
        if pair.higher_is_better:  # smaller has to be better
            name, value = f"{name}, 1 − value", 1 - pair.new
    return {"name": name, "unit": unit, "value": value, "range": f"± {rough(evidence.total)}", "extra": about}
