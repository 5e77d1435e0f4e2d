"""What comparisons of laws say, in words: one short paragraph each, with the numbers that it rests on.

Nothing here computes; it decides only which sentence the numbers call for.  A sentence never names a better law where
held-out points and AICc point in different directions, or where neither is beyond chance.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ptq_eval.laws.fit.bootstrap import MIN_RUNS

NEGLIGIBLE = 0.05
"""An effect that changes delta by less than this share over all records is no explanation of it."""

if TYPE_CHECKING:
    from ptq_eval.laws.compare.ranking import Comparison, Difference


def verdict(comparison: Comparison) -> str:
    """Which law is best on these records, which ones it can be told from, and which not."""
    entries, differences = comparison.entries, comparison.differences
    if not entries:
        return "no law can be fitted to these records"
    best, others = entries[0], list(zip(entries[1:], differences[1:]))
    if not others:
        return f"{best.name} is the only law that can be fitted to these records"
    described = [(f"{e.name} ({_numbers(d, comparison)})", d) for e, d in others]
    apart = [text for text, d in described if d.told_apart]
    torn = [text for text, d in described if _torn(d)]
    alike = [text for text, d in described if not d.told_apart and not _torn(d)]
    by = "held-out error" if comparison.kinds else "AICc (nothing could be left out)"
    parts = [f"best by {by}: {best.name}"]
    if apart:
        parts.append(f"it is told apart from {_list(apart)}")
    if alike:
        parts.append(f"these records do not tell it from {_list(alike)}")
    if torn:
        parts.append(
            f"{_list(torn)}: described better within the records, predicted no better outside, so neither is best"
        )
    if comparison.clusters_are != "runs":
        parts.append("all this holds for these few runs; whether others would agree is not covered")
    return "; ".join(parts)


def _torn(difference: Difference) -> bool:
    """Whether AICc speaks against the law that is best by held-out error."""
    return difference.by_aicc < 0


def _numbers(difference: Difference, comparison: Comparison) -> str:
    held = f"held-out error {difference.error:+.3f} ± {_error(difference.error_se)}, " if comparison.kinds else ""
    return f"{held}AICc {difference.aicc:+.1f} ± {_error(difference.aicc_se)}"


def _error(value: float) -> str:
    return f"{value:.2g}" if math.isfinite(value) else "unknown"


def _list(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def phase_verdict(found: dict[str, Any]) -> str:
    """Whether delta follows tokens, the schedule's phase, or both, from the tests of the nested laws."""
    parts = [
        f"{name} added to the other {'lower' if one['aicc'] > 0 else 'raise'} the AICc by {abs(one['aicc']):.1f}, "
        f"{one['constant']} = {one['value']:.2g} [{one['low']:.2g}, {one['high']:.2g}]"
        for name, one in found["adding"].items()
    ]
    text = _what_it_follows(found["adding"])
    return f"{text} ({'; '.join(parts)}; correlation of log D with the phase {found['correlation']:.2f})"


def _what_it_follows(adding: dict[str, Any]) -> str:
    """The first words of the answer; an effect that is beyond chance and changes delta by little is called so."""
    names = {"tokens": "tokens", "phase": "the learning rate's phase"}
    adds = [name for name in names if adding[name]["adds"]]
    matter = [name for name in adds if adding[name]["change"] >= NEGLIGIBLE]
    if not adds:
        return (
            "whether degradation follows tokens or the learning rate's phase cannot be told: neither adds to the other"
        )
    if len(matter) == 2:
        return "degradation follows both tokens and the learning rate's phase, and neither alone explains it"
    if not matter:
        return "what degradation follows here is negligible: " + " and ".join(
            _little(names[x], adding[x]) for x in adds
        )
    other = "phase" if matter == ["tokens"] else "tokens"
    if other in adds:
        return f"degradation follows {names[matter[0]]}: {_little(names[other], adding[other])}, which is negligible"
    verb = "adds" if other == "phase" else "add"
    return f"degradation follows {names[matter[0]]}: {names[other]} {verb} nothing that is told from chance"


def _little(name: str, one: dict[str, Any]) -> str:
    verb = "change" if name == "tokens" else "changes"
    return f"{name} {verb} delta by {100 * one['change']:.2g} % over the whole range of these records"


def equality_verdict(found: dict[str, Any]) -> str:
    """Whether two constants may be equal, from the interval of their difference and the AICc of both fits."""
    a, b, difference = found["a"], found["b"], found["difference"]
    low, high, gain = difference["low"], difference["high"], found["aicc_equal"] - found["aicc_free"]
    span = f"{a} - {b} = {difference['value']:.3g}, {100 * found['level']:g} % interval {low:.3g} to {high:.3g}"
    cost = f"AICc {abs(gain):.1f} {'higher' if gain > 0 else 'lower'} with {a} = {b}"
    if found["n_runs"] < MIN_RUNS:
        cost += f"; {found['n_runs']} run{'s' * (found['n_runs'] != 1)}, so differences between runs are in neither"
    outside = low > 0 or high < 0
    if outside and gain > 2:
        return f"{a} and {b} differ: {span}; {cost}"
    if not outside and gain <= 2:
        return f"{a} = {b} is compatible with these records: {span}; {cost}"
    return f"undecided whether {a} = {b}: {span}; {cost}"
