"""The scores of the arena in words: what was held out, how a law did, and why one is not identified."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ptq_eval.laws.compare.arena import BASELINES, POWER, STAYING, Place
from ptq_eval.laws.fit.bootstrap import MIN_RUNS
from ptq_eval.report.common.numbers import MISSING, plus_minus, short
from ptq_eval.report.common.words import listed, plural, reason_text
from ptq_eval.report.comparison.words import exclusion

Found = Mapping[str, Any]

QUESTIONS = {"last": "largest D of each run", "N": "largest N", "P": "each bit-width in turn"}
"""What is held out."""
HELD_OUT = {"last": "the largest D of each run", "N": "the largest N", "P": "each bit-width in turn"}
BASELINE_NAMES = {STAYING: "stays as it is", POWER: "power of D and N per bit-width"}
RESPONSES = {"delta": "δ", "loss": "loss"}
NOT_IDENTIFIED = "not identified"

HOW = """\
Every law is fitted to the points that were kept, and predicts those that were held out: the largest D of each run
(where every run has one D, that of each N), the largest N, and each bit-width in turn. A score is the root mean square
of log f − log y: 0.1 is about 10 %. It counts held-out points that exceed two standard errors of their own, and a
prediction more than a factor of {worst:g} off counts as {worst:g}. ± is the standard error over runs, unknown with
fewer than {runs} of them. Beside it is p, the probability of so large a difference from the best law by chance: a
paired test over runs, adjusted for all pairs of laws under that question (Holm). **Bold**: the best law, and every law
that is not significantly different from it (p ≥ 0.05). CRPS, in arena.csv, scores the whole predictive distribution
where a fit has a scatter. Baselines are in italics. The tables share models, so their rankings are not independent.
"""


def how(found: Found) -> str:
    """What scores mean."""
    return HOW.format(worst=found["worst"], runs=MIN_RUNS)


def law_name(name: str) -> str:
    """A law, or a baseline in italics (Markdown)."""
    return f"*{BASELINE_NAMES[name]}*" if name in BASELINE_NAMES else name


def title(table: Found, ranking: Found) -> str:
    """What a ranking is about."""
    label = f", {ranking['label']}" if ranking["label"] != table["name"] else ""
    return f"{table['name']}{label}: {RESPONSES[ranking['response']]}"


def design(ranking: Found) -> str:
    """How many points, runs and distinct values there are."""
    distinct = listed(f"{n} of {name}" for name, n in ranking["distinct"].items())
    size = f"{plural(ranking['n_points'], 'point')} of {plural(ranking['n_runs'], 'run')}; distinct values: {distinct}"
    if ranking["thinned_from"]:
        size += f"; whole checkpoints drawn from {ranking['thinned_from']} points"
    if ranking["repeats"]:
        size += (
            f"; {plural(ranking['repeats'], 'point')} the same as an earlier one in every column, each counted again"
        )
    return size


def score(one: Found) -> str:
    """A score with its error, and p of the difference from the best law."""
    text = plus_minus(one["score"], one["error"]) if one["error"] is not None else short(one["score"])
    if one["beyond"]:
        text += f", {one['beyond']} far off"
    if one["place"] in (Place.BEST, Place.ALIKE):
        text = f"**{text}**"
    return text if one["p"] is None else f"{text} (p {_p(one['p'])})"


def _p(value: float) -> str:
    return "< 0.001" if value < 1e-3 else f"= {value:.2g}"


def questions(ranking: Found) -> Iterator[str]:
    """A line for each question: how many points it has, or why it cannot be asked here."""
    for one in ranking["questions"]:
        name = QUESTIONS[one["held_out"]]
        if one["reason"]:
            yield f"{name}: {NOT_IDENTIFIED}, {reason_text(one['reason'])}"
            continue
        text = f"{name}: {plural(one['n_points'], 'point')} of {plural(one['n_runs'], 'run')}"
        if one["n_unclear"]:
            text += f", {one['n_unclear']} more within their noise"
        if one["n_runs"] < MIN_RUNS:
            text += "; too few runs for errors, so no difference can be called significant"
        yield text


def reasons(ranking: Found) -> Iterator[str]:
    """A line for each reason why laws are not identified, under one question or at all; and what is fixed."""
    for one in ranking["questions"]:
        by_reason: dict[str, list[str]] = {}
        for law, reason in one["not_identified"].items():
            by_reason.setdefault(reason_text(reason), []).append(law_name(law))
        for text, laws in by_reason.items():
            yield f"{listed(laws)}: {NOT_IDENTIFIED} with {HELD_OUT[one['held_out']]} held out: {text}"
    excluded: dict[str, list[str]] = {}
    for law, reason in ranking["excluded"].items():
        excluded.setdefault(exclusion(reason), []).append(law_name(law))
    for text, laws in excluded.items():
        yield f"{listed(laws)}: {NOT_IDENTIFIED}: {text}"
    fixed: dict[str, list[str]] = {}
    for law, given in ranking["held"].items():
        fixed.setdefault(listed(f"{name} = {value:g}" for name, value in given.items()), []).append(law_name(law))
    for text, laws in fixed.items():
        yield f"{listed(laws)}: fixed at {text}, which this design cannot tell; the rest of the law is scored"


def command(found: Found) -> str:
    """The command that made the page."""
    tables = " ".join(f"{table['name']}={table['file']}" for table in found["tables"])
    flags = f" --tables {found['described']}" if found["described"] else ""
    return f"ptq-eval arena {tables}{flags}"


def counts(found: Found, response: str) -> dict[str, dict[str, dict[str, int]]]:
    """How often each law is at each place, by law and question; "not_identified" beside the places."""
    names = [*found["laws"], *BASELINES]
    total: dict[str, dict[str, dict[str, int]]] = {name: {x: {} for x in QUESTIONS} for name in names}
    for table in found["tables"]:
        for ranking in (one for one in table["rankings"] if one["response"] == response):
            for one in ranking["questions"]:
                place = {score["law"]: score["place"] for score in one["scores"]}
                known = {*place, *one["not_identified"], *ranking["excluded"]}
                for law in known & {*names} if not one["reason"] else ():
                    cell = total[law][one["held_out"]]
                    key = place.get(law, "not_identified")
                    cell[key] = cell.get(key, 0) + 1
    return {law: own for law, own in total.items() if any(own.values())}


def count_cell(cell: Mapping[str, int]) -> str:
    """Best or alike / worse / no error / not identified, of how many rankings."""
    good = cell.get(Place.BEST, 0) + cell.get(Place.ALIKE, 0)
    shown = ((good, "good"), (cell.get(Place.WORSE, 0), "worse"), (cell.get(Place.UNKNOWN, 0), "no error"))
    parts = [f"{n} {what}" for n, what in (*shown, (cell.get("not_identified", 0), NOT_IDENTIFIED)) if n]
    return ", ".join(parts) or MISSING
