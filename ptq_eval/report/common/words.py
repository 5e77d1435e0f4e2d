"""Sentences about fits: why there is none, how it ended, what its intervals cover.

The laws return values (`laws.findings`, `laws.base`); the functions here take them in the form in which `fit.json`
holds them, so that a stored fit and a fresh one read alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ptq_eval.laws.base import FitKind, Method, Noise
from ptq_eval.laws.findings import Why
from ptq_eval.laws.fit.bootstrap import MIN_RUNS
from ptq_eval.laws.quality import MAX_SCATTER, Scatter
from ptq_eval.laws.turning.verdict import Conflict
from ptq_eval.report.common.numbers import OPEN, count, end, number, percent, short
from ptq_eval.results.points import SAME_SIZE

Facts = Mapping[str, Any]


def listed(items: Iterable[Any]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *first, last = map(str, items)
    return f"{', '.join(first)} and {last}" if first else last


def plural(n: float, one: str, many: str = "") -> str:
    """`1 run`, `2 runs`."""
    return f"{n:.0f} {one if n == 1 else many or one + 's'}"


def _too_few_values(facts: Facts) -> str:
    return f"{plural(facts['distinct'], 'distinct value')} of {facts['variable']}, at least {facts['needed']} needed"


def _confounded(facts: Facts) -> str:
    pair = facts["variables"]
    ours, theirs = (" and ".join(names) or f"the effect of {x}" for x, names in zip(pair, facts["constants"]))
    near = f"{pair[0]} and {pair[1]} are never more than {100 * SAME_SIZE:g} % off one power law"
    return f"{near}, so {ours} can be traded off against {theirs}"


def _not_separable(facts: Facts) -> str:
    names = facts["constants"]
    what = f"{names[0]} changes nothing in the prediction"
    if len(names) > 1:
        what = f"{listed(names)} can change together without changing the prediction"
    if facts["variable"] == "G":
        return f"these group sizes do not determine the constants: at least two above 1 are needed ({what})"
    if facts["variable"] == "P":
        alone = ", or one alone" if facts["one_value"] else ""
        needed = f"at least two with a delta significantly above zero are needed{alone}"
        return f"these bit-widths do not determine the constants: {needed} ({what})"
    return what


def _nothing_held_out(facts: Facts) -> str:
    name = facts["variable"]
    return f"all points have one {name}" if facts["distinct"] == 1 else f"too few values of {name} to hold any out"


def _constant_at_bound(facts: Facts) -> str:
    names = facts["constants"]
    verb = "is at its bound" if len(names) == 1 else "are at their bounds"
    return f"{listed(names)} of the degradation law {verb}"


def _does_not_grow(facts: Facts) -> str:
    ends = [short(value) if math.isfinite(value) else OPEN for value in map(number, (facts["low"], facts["high"]))]
    about = f"{facts['constant']} = {short(facts['value'])}, interval {ends[0]} to {ends[1]}"
    return f"delta does not grow significantly with D ({about})"


def _wide_interval(facts: Facts) -> str:
    return f"the interval of D_crit spans {end(facts['low'])} to {end(facts['high'])} tokens: the range is too short"


def _short_range(facts: Facts) -> str:
    low, high = number(facts["low"]), number(facts["high"])
    seen = f"the range of D ({count(low)} to {count(high)} tokens, {short(high / low)}×)"
    return f"{seen} is too short to predict D_crit at {short(facts['factor'])}× the largest D"


def _misses(facts: Facts) -> str:
    above = f"{facts['clear']} of {plural(facts['deltas'], 'delta')} {'is' if facts['clear'] == 1 else 'are'}"
    return f"at {facts['bits']:g} bits the law does not describe the deltas, although {above} significantly above zero"


CONFLICTS: Mapping[str, str] = {
    Conflict.STILL_FALLS: "the loss still falls significantly beyond it",
    Conflict.TURNS_ELSEWHERE: "the loss turns elsewhere",
    Conflict.FORECAST_EXCLUDES: "the forecast from this run's own checkpoints excludes it",
}
_REASONS: Mapping[Why, Callable[[Facts], str]] = {
    Why.TOO_FEW_POINTS: lambda f: f"{plural(f['points'], 'point')} for {f['constants']} constants",
    Why.TOO_FEW_VALUES: _too_few_values,
    Why.TOO_FEW_CLEAR_DELTAS: lambda f: (
        f"only {f['clear']} of {f['deltas']} deltas are significantly above zero, {f['needed']} needed"
    ),
    Why.LOSS_DOES_NOT_FALL: lambda f: "the loss does not fall significantly with D",
    Why.GROUP_SIZE_ONE: lambda f: "this law does not cover a group size of 1 or less",
    Why.CONFOUNDED: _confounded,
    Why.NOT_SEPARABLE: _not_separable,
    Why.NOT_FINITE: lambda f: (
        "the derivatives of the law are not finite on these points: some of their values are far too large"
    ),
    Why.COLUMN_MISSING: lambda f: f"the data have no column {f['variable']}",
    Why.NOTHING_HELD_OUT: _nothing_held_out,
    Why.UNSEEN_VALUE: lambda f: f"it says nothing of a {f['variable']} that it has not seen",
    Why.LAW_HAS_NO_TURN: lambda f: f"the law {f['law']} gives no critical number of tokens",
    Why.NO_LOSS_CURVE: lambda f: "no full-precision loss is known",
    Why.DELTA_NOT_FITTED: lambda f: f"the degradation law cannot be fitted: {reason_text(f['fit'])}",
    Why.LOSS_NOT_FITTED: lambda f: f"the full-precision curve cannot be fitted: {reason_text(f['fit'])}",
    Why.LAW_NOT_FITTED: lambda f: f"{f['law']} cannot be fitted: {reason_text(f['fit'])}",
    Why.BITS_AT_BOUND: lambda f: (
        f"these bit-widths do not determine how delta falls with the bits ({listed(f['constants'])} is at its bound)"
    ),
    Why.CONSTANT_AT_BOUND: _constant_at_bound,
    Why.NOT_CONVERGED: lambda f: "the search for the degradation law did not converge",
    Why.LOSS_NO_POWER_LAW: lambda f: (
        f"the full-precision loss does not fall as a power of D ({listed(f['constants'])} at a bound)"
    ),
    Why.DELTA_DOES_NOT_GROW: _does_not_grow,
    Why.NO_TURN: lambda f: "the law has no turning point here",
    Why.WIDE_INTERVAL: _wide_interval,
    Why.SHORT_RANGE: _short_range,
    Why.FEW_SIZES: lambda f: (
        f"{plural(f['sizes'], 'size')} of model, fewer than {f['needed']}: whatever else differs between the runs "
        "counts as size"
    ),
    Why.DELTA_NOT_SIGNIFICANT: lambda f: f"at {f['bits']:g} bits delta is not significantly different from zero",
    Why.LAW_MISSES_DELTAS: _misses,
    Why.FULL_PRECISION_RISES: lambda f: "the full-precision loss itself rises inside the range",
    Why.TOO_FAR: lambda f: f"the fits point to {short(f['factor'])}× the largest D seen, too far to believe",
    Why.REFUTED: lambda f: f"the measurements refute the turn that the law predicts: {CONFLICTS[f['conflict']]}",
    Why.DELTA_HIDDEN: lambda f: hidden_text(f["most"]),
    Why.FORECAST_OPEN: lambda f: (
        f"{plural(f['checkpoints'], 'checkpoint')} forecast neither a turn nor that none comes before a certain D"
    ),
}


def hidden_text(most: Any) -> str:
    """The limit of a delta that is hidden in its errors."""
    return (
        f"delta at the last checkpoint is below {short(most)} nats per token (95 %), and how it grows is not determined"
    )


def reason_text(reason: Facts | None) -> str:
    """A reason of `fit.json` in words, or that no reason is recorded."""
    return _REASONS[Why(reason["kind"])](reason) if reason else "no reason is recorded"


def status_text(entry: Facts) -> str:
    """The status of a fit: "ok", "at_bound: names", "not_identified: why" or "not_converged"."""
    kind = FitKind(entry["status_kind"])
    if kind is FitKind.AT_BOUND:
        return f"{kind}: {', '.join(entry['at_bound'])}"
    return f"{kind}: {reason_text(entry['reason'])}" if kind is FitKind.NOT_IDENTIFIED else kind.value


def scatter_text(entry: Facts, found: Facts | None = None) -> str:
    """The scatter of a fit, or of a part `found` of it: per cent of the prediction, or in the unit of the response."""
    value = number((found or entry).get("scatter"))
    if not math.isfinite(value) or entry.get("scatter_kind") != Scatter.RESPONSE:
        return f"over {percent(MAX_SCATTER)}" if value > 0.99 * MAX_SCATTER else percent(value)
    unit = "nats" if entry["response"] in ("loss", "delta") else f"of {entry['response']}"
    return f"{short(value)} {unit}"


def message_text(entry: Facts) -> str:
    """What has to be said of a fit beside its numbers."""
    if entry["status_kind"] == FitKind.NOT_IDENTIFIED:
        return f"no fit: {reason_text(entry['reason'])}"
    text, scatter = plural(entry["n_points"], "point"), number(entry.get("scatter"))
    if math.isfinite(scatter):
        least = " (the smallest assumed)" if entry["least_scatter"] else ""
        text += f", scattering {scatter_text(entry)} about the law beyond evaluation noise{least}"
    return "; ".join([text, *remarks(entry)])


def remarks(entry: Facts) -> list[str]:
    """The peculiarities of a fit that its numbers do not show."""
    found, undefined = [], entry.get("n_undefined") or 0
    for name, value in (entry.get("fixed") or {}).items():
        factor = next(iter(entry["parameters"]))
        found.append(
            f"one bit-width: {name} is set to {value:g} and not fitted, {factor} holds only together with it and for "
            "these bits"
        )
    if undefined:
        values = plural(undefined, "value is", "values are")
        found.append(f"{values} not positive and {'has' if undefined == 1 else 'have'} no logarithm: dropped")
    if entry.get("status_kind") == FitKind.NOT_CONVERGED:
        found.append("the search did not converge, the constants are the best found")
    if absent := entry.get("no_interval"):
        found.append(f"no interval for {listed(list(absent))}: {reason_text(next(iter(absent.values())))}")
    if names := entry.get("at_bound"):
        found.append(f"at {'its' if len(names) == 1 else 'their'} bound: {', '.join(names)}")
    return found


def interval_text(entry: Facts) -> str:
    """What the intervals of a fit cover and what they do not, with how many of its deltas ended early."""
    text, early = coverage_text(entry["covers"]), entry.get("early")
    return f"{text}; {early_text(**early)}" if early else text


def coverage_text(covers: Facts, *others: Facts) -> str:
    """What intervals cover and what they do not; `others` are of the same kind, with other counts."""
    method, interval = Method(covers["method"]), f"{100 * number(covers['level']):g} % interval"
    if method is Method.NONE:
        return "no interval"
    if method is Method.PROFILE:
        return (
            f"{interval} by profile likelihood; takes points as independent, differences between runs are not covered"
        )
    covered, missing = {
        Noise.WINDOWS: ([f"the choice of {covers['n_windows']} evaluation windows"], []),
        Noise.STANDARD_ERRORS: (["evaluation noise, as independent errors of the size of the standard errors"], []),
        Noise.NONE: ([], ["evaluation noise (no standard errors are known)"]),
    }[Noise(covers["noise"])]

    def span(count: str, noun: str) -> str:
        counts = [facts[count] for facts in (covers, *others)]
        low, high = min(counts), max(counts)
        return plural(high, noun) if low == high else f"{low} to {plural(high, noun)}"

    if covers["covers_runs"]:
        over, covered = "over", [*covered, "differences between runs"]
    else:
        over, covered = "from", [*covered, f"the scatter of {span('n_clusters', 'checkpoint')} about the law"]
        another = f"another training run (seed, data order): at least {MIN_RUNS} runs are needed for that"
        missing = [*missing, another]
    text = f"{interval} {over} {span('n_runs', 'run')}; covers {' and '.join(covered)}"
    return f"{text}; not {' nor '.join(missing)}" if missing else text


def early_text(count: int, deltas: int, median: float, low: int, high: int, windows: int) -> str:
    """How many deltas ended early, and after how many windows."""
    spread = f"median, {low} to {high}" if low < high else "each"
    return (
        f"{count} of {deltas} deltas ended early, by the rule of --precision, after {median:g} of {windows} windows "
        f"({spread})"
    )


def with_fit_texts(entry: Facts) -> dict[str, Any]:
    """An entry of `fits` with its sentences: "status", "message" and "interval"."""
    return {**entry, "status": status_text(entry), "message": message_text(entry), "interval": interval_text(entry)}


def poor_text(poor: Facts) -> str:
    """How poorly a law fits: `scatter 81 %`, or R² where the scatter is unknown."""
    scatter = number(poor["scatter"])
    return f"scatter {percent(scatter)}" if math.isfinite(scatter) else f"R² = {number(poor['r2']):.2g}"
