"""A comparison of two results in words: the verdict, what could have been seen, and what else its reader must know.

Nothing here decides anything: outcomes, power and what differs are those that `ptq_eval.compare` found.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from itertools import groupby

from ptq_eval.report.common.numbers import plus_minus, rough, short
from ptq_eval.report.gate.names import Names
from ptq_eval.results.gate.decision import ASSURED, MULTIPLE, POWER, Outcome, Shortage
from ptq_eval.results.gate.pairs import Absence, Condition, Mismatch, Missing
from ptq_eval.results.gate.verdict import Comparison, Judged, Verdict

CONDITIONS = {
    Condition.WEIGHTS: "weights",
    Condition.PROTOCOL: "evaluation protocol",
    Condition.DTYPE: "data type",
    Condition.DEVICE: "device",
    Condition.CALIBRATION: "kind of calibration",
    Condition.CALIBRATION_TEXT: "calibration text",
    Condition.CALIBRATION_WINDOWS: "number of calibration windows",
    Condition.CALIBRATION_LENGTH: "length of calibration windows",
    Condition.CORPUS: "evaluation windows",
    Condition.HEAD: "treatment of the head",
    Condition.EMBEDDING: "treatment of the embedding",
    Condition.CALIBRATION_DRAW: "draw of calibration windows",
    Condition.COMMON_WINDOWS: "part of the text that was measured",
    Condition.DOCUMENTS: "documents",
    Condition.PROMPT: "prompts",
    Condition.TARGET: "answers",
    Condition.VERSION: "version of the task",
}
_PLURAL = {Condition.WEIGHTS, Condition.CORPUS, Condition.DOCUMENTS, Condition.PROMPT, Condition.TARGET}
OUTCOMES = {
    Outcome.SAME: "same",
    Outcome.WORSE: "worse",
    Outcome.BETTER: "better",
    Outcome.NOT_WORSE: "not worse",
    Outcome.UNTESTED: "one window",
}
VERDICTS = {
    Verdict.WORSE: "Worse",
    Verdict.NOT_COMPARABLE: "Not comparable",
    Verdict.MISSING: "Missing measurements",
    Verdict.NOT_WORSE: "Not worse",
}
SMALL_DRIFT = 1e-6
"""Nats per token by which sums in another order may move a loss."""
LISTED = 5


def unit(found: Comparison, cell: Judged | None = None) -> str:
    """The unit of a worsening."""
    if not found.documents:
        return "nats per token"
    return "nats" if cell is not None and cell.pair.about["nats"] else "of the metric"


def headline(found: Comparison, names: Names) -> str:
    """The verdict in a sentence."""
    return f"{VERDICTS[found.verdict]}: {_because(found, names)}"


def _because(found: Comparison, names: Names) -> str:
    tolerance = f"{short(found.rule.tolerance)} {unit(found)}"
    if found.verdict == Verdict.WORSE:
        worst, *others = found.worse
        are = "cell is" if len(others) == 1 else "cells are"
        more = f" {len(others)} more {are} worse by more than {tolerance}." if others else ""
        return f"{names.of(worst.pair.about)} {worsening(found, worst)}.{more}"
    if found.verdict == Verdict.NOT_COMPARABLE:
        return " ".join(differences(found, names))
    if found.verdict == Verdict.MISSING:
        if not found.cells:
            return "no cell is in both results. " + " ".join(absences(found, names))
        return " ".join(absences(found, names))
    if all(cell.outcome == Outcome.SAME for cell in found.cells):
        cells = "cells have" if len(found.cells) > 1 else "cell has"
        return f"all {len(found.cells)} {cells} the same loss, window by window."
    return f"none of {len(found.cells)} cells is worse by more than {tolerance} beyond chance."


def amount(cell: Judged) -> str:
    """How much worse a cell is, with its error."""
    return plus_minus(cell.pair.evidence.worsening, cell.pair.evidence.total)


def worsening(found: Comparison, cell: Judged) -> str:
    """How much worse a cell is, and how rare that is by chance."""
    if math.isinf(cell.pair.evidence.worsening):
        return "by more than any tolerance (its loss is not finite)"
    return f"by {amount(cell)} {unit(found, cell)} ({chance(found, cell)})"


def chance(found: Comparison, cell: Judged) -> str:
    """How rare that is by chance."""
    p = cell.adjusted_p
    value = "p < 0.0001" if p < 1e-4 else f"p = {rough(p)}"
    return f"{value} over all {len(found.cells)} cells"


def differences(found: Comparison, names: Names) -> Iterator[str]:
    """What makes cells incomparable, a sentence for each kind of difference."""
    key = lambda one: (tuple(Condition).index(one.what), one.base, one.new)
    total = len(found.mismatches) + len(found.cells) + len(found.missing)
    for _, group in groupby(sorted(found.mismatches, key=key), key):
        own = list(group)
        yield f"the {CONDITIONS[own[0].what]} {_differ(own[0])}: {_sides(own[0])}{_where(own, total, names)}."


def _differ(one: Mismatch) -> str:
    return "differ" if one.what in _PLURAL else "differs"


def _sides(one: Mismatch) -> str:
    return f"{one.base} in the old result, {one.new} in the new one"


def _where(own: Sequence[Mismatch], total: int, names: Names) -> str:
    if len(own) == total:
        return ", in every cell" if total > 1 else ""
    return f", in {len(own)} of {total} cells ({_some([names.of(one.about) for one in own])})"


def _some(labels: Sequence[str]) -> str:
    rest = len(labels) - LISTED
    return ", ".join(labels[:LISTED]) + (f" and {rest} more" if rest > 0 else "")


def absences(found: Comparison, names: Names) -> Iterator[str]:
    """Which cells the new result lacks, and why."""
    total = len(found.missing) + len(found.cells) + len(found.mismatches)
    for why in Absence:
        own = [one for one in found.missing if one.why == why]
        if own:
            yield _absent(why, own, total, names)


def _absent(why: Absence, own: Sequence[Missing], total: int, names: Names) -> str:
    which = _some([names.of(one.about) for one in own])
    if why == Absence.NOT_THERE:
        are = "is" if len(own) == 1 else "are"
        return f"{len(own)} of {total} cells of the old result {are} not in the new one ({which})."
    said = next((one.message for one in own if one.message), "")
    verb = "failed" if why == Absence.FAILED else "belong to checkpoints that were excluded"
    return f"{len(own)} of {total} cells {verb} in the new result ({which}){': ' + said if said else ''}."


def power(found: Comparison, names: Names) -> Iterator[str]:
    """What could have been seen, and what it would take to see twice the tolerance."""
    known = sorted((cell for cell in found.cells if math.isfinite(cell.smallest)), key=lambda cell: cell.smallest)
    if not known:
        return
    what = "documents" if found.documents else "windows"
    middle = statistics.median_low([cell.smallest for cell in known])
    yield (
        f"What these {what} could have seen, with probability {POWER:g}: a worsening of {rough(middle)} {unit(found)} "
        f"in the typical cell, {rough(known[0].smallest)} in the most sensitive one ({names.of(known[0].pair.about)}) "
        f"and {rough(known[-1].smallest)} in the least ({names.of(known[-1].pair.about)})."
    )
    yield _needed(found, known, what)
    if any(cell.outcome == Outcome.SAME for cell in known):
        yield "Where nothing changed, that is what they would see of two models that were rounded independently."


def _needed(found: Comparison, known: Sequence[Judged], what: str) -> str:
    twice = f"{MULTIPLE * found.rule.tolerance:g} {unit(found)}"
    enough = [cell for cell in known if cell.enough]
    counts = [cell.needed for cell in known if isinstance(cell.needed, int) and not cell.enough]
    never = [cell for cell in known if cell.needed is Shortage.CHANCE]
    parts = [f"{len(enough)} of {len(found.cells)} cells have enough"]
    if counts:
        parts.append(f"{len(counts)} would need {_range(counts)} {what}")
    if never:
        parts.append(f"in {len(never)} no number of {what} would do{_why_never(found)}")
    return f"To see twice the tolerance, {twice}, with probability {ASSURED:g}: " + "; ".join(parts) + "."


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _why_never(found: Comparison) -> str:
    if found.rule.tolerance == 0:
        return ", because the tolerance is zero"
    if found.judge == "method" and not found.documents:
        return (
            ", because another rounding of the same quality moves the loss by as much "
            "(a larger --tolerance, --calib-repeats of the runs, or --judge model)"
        )
    return ""


def remarks(found: Comparison, names: Names) -> Iterator[str]:
    """What else a reader must know."""
    if found.verdict != Verdict.NOT_COMPARABLE:
        yield from (_capital(text) for text in differences(found, names))
    if found.verdict != Verdict.MISSING:
        yield from absences(found, names)
    if found.added:
        labels = _some([names.of(about) for about in found.added])
        are = "cell is" if len(found.added) == 1 else "cells are"
        yield f"{len(found.added)} {are} in the new result alone, not compared ({labels})."
    yield from _about_windows(found, names)
    yield from _about_models(found, names)
    for origin in (found.base, found.new):
        if origin.damaged:
            where = _some([f"{name} line {line}" for name, line in origin.damaged])
            yield f"Damaged records in {origin.name} count as missing: {where}."
    if found.skipped:
        yield f"Without a value per document, and not compared: {', '.join(found.skipped)}."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _about_windows(found: Comparison, names: Names) -> Iterator[str]:
    what = "documents" if found.documents else "windows"
    fewer = [cell.pair for cell in found.cells if len(set(cell.pair.windows)) > 1]
    if fewer:
        one = fewer[0]
        yield (
            f"In {len(fewer)} cells the two results measured different {what} and were compared on those in common "
            f"({names.of(one.about)}: {one.windows[0]} of {one.windows[1]} and {one.windows[2]})."
        )
    tables = [origin.name for origin in (found.base, found.new) if not origin.windows]
    apart = sum(not cell.pair.paired for cell in found.cells)
    if tables and apart and not found.documents:
        all_of = f"{' and '.join(dict.fromkeys(tables))} {'hold' if len(set(tables)) > 1 else 'holds'} no records"
        some_of = f"{apart} of {len(found.cells)} cells, whose records are not there"
        yield (
            f"Not compared window by window: {all_of if apart == len(found.cells) else some_of}. The errors of both δ "
            "were added instead, which is an upper bound; with records, much smaller worsenings can be seen."
        )


def _about_models(found: Comparison, names: Names) -> Iterator[str]:
    drifts = [cell.pair for cell in found.cells if abs(cell.pair.drift) > SMALL_DRIFT]
    if drifts:
        one = max(drifts, key=lambda pair: abs(pair.drift))
        yield (
            f"The loss in full precision moved too, by {one.drift:+.2g} nats per token at {names.place(one.about)}: "
            "that part of the change is not due to quantization."
        )
    partial = [cell.pair for cell in found.cells if cell.pair.partial[0] != cell.pair.partial[1]]
    if partial:
        one = partial[0]
        yield (
            f"In {len(partial)} cells another number of layers stayed in full precision ({names.of(one.about)}: "
            f"{one.partial[0]}, now {one.partial[1]})."
        )
    yield from _about_luck(found, names)


def _about_luck(found: Comparison, names: Names) -> Iterator[str]:
    lucky = [cell for cell in found.cells if cell.luck]
    if lucky:
        one, worse = max(lucky, key=lambda cell: cell.pair.evidence.worsening), len(found.worse)
        which = "It" if worse == 1 else f"{len(lucky)} of the {worse} worse cells"
        yield (
            f"{which} may be bad luck: another rounding of the same quality would move the loss of "
            f"{names.of(one.pair.about)} by ± {rough(one.pair.luck)}, which --judge method counts as chance."
        )
    if found.documents:
        yield "A difference counts as one of these very models: another rounding, or another seed, is not covered."
    elif found.judge == "method" and not all(cell.pair.luck_known for cell in found.cells):
        yield "The records do not say how far another rounding would move the loss, so that chance is not counted."


def origins(found: Comparison) -> Iterator[str]:
    """Where both results are from, and how their versions differ."""
    for word, one in (("Old", found.base), ("New", found.new)):
        yield f"{word}: {one.name}" + (f" ({one.version})" if one.version else "")
    mine, others = found.base.quantizers or {}, found.new.quantizers or {}
    changed = [f"{name} {mine[name]} → {others[name]}" for name in mine if others.get(name, mine[name]) != mine[name]]
    if changed:
        yield f"Versions of quantizers: {', '.join(changed)}"


def fine_print(found: Comparison) -> str:
    """What the verdict rests on; empty where nothing was compared."""
    if not found.cells:
        return ""
    test = "exact one-sided tests of McNemar and paired t-tests" if found.documents else "one-sided paired t-tests"
    pairs = ", document by document" if found.documents else ", window by window"
    if not all(cell.pair.paired for cell in found.cells):
        test, pairs = "one-sided t-tests", ""
    errors = "" if found.documents or found.judge == "model" else "; errors include the luck of both roundings"
    return (
        f"Worse means: by more than {short(found.rule.tolerance)} {unit(found)}, and at {100 * found.rule.level:g} % "
        f"over all {len(found.cells)} cells (Holm), in {test}{pairs}{errors}."
    )
