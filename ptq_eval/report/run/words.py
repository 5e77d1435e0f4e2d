"""The sentences of a run's report: its answers, the warnings of its fits, and notes on its records.

The answer says beyond how many tokens more pretraining data harms the quantized model.  Its kinds are never mixed up.
*Observed*: the loss after quantization has its minimum inside the trajectory and rises significantly afterwards.
*Forecast*: the run's own checkpoints continue to a turn within an interval, or to none before a certain D.
*Predicted*: the fitted laws have their turning point there, and the multiple of the largest D seen says how far that is
extrapolated.  *Not identifiable*: none of these, with the reason.  Which of them holds, and which warnings apply, is
decided where the laws are fitted (`laws.turning.verdict`, `laws.warnings`); here it is said in words.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ptq_eval.laws.findings import Caution
from ptq_eval.laws.turning.observed import Untested
from ptq_eval.laws.turning.significance import POWER
from ptq_eval.laws.turning.verdict import Conflict, Share, VerdictKind
from ptq_eval.report.common.data import Frame, Study
from ptq_eval.report.common.numbers import (
    MISSING,
    OPEN,
    bounds,
    count,
    end,
    number,
    plus_minus,
    ratio,
    short,
    tokens_estimate,
)
from ptq_eval.report.common.words import early_text, listed, plural, poor_text, reason_text
from ptq_eval.results.load import Results
from ptq_eval.results.points import Skipped

Entry = Mapping[str, Any]

_REASONS = {
    Skipped.NOT_MEASURED: "status other than ok or partial",
    Skipped.TOKENS_UNKNOWN: "tokens unknown",
    Skipped.PARAMS_UNKNOWN: "parameters unknown",
}
_SCATTER = {
    "within": "within the scatter of checkpoints",
    "unknown": "there are too few checkpoints to know whether that is their scatter",
    "beyond": "the model got worse, not only its quantized form",
}
_SOURCE = "(arXiv 2510.06213)"


def observed(entry: Entry) -> bool:
    """Whether the loss after quantization turns upward inside the trajectory."""
    return entry.get("verdict_kind") == VerdictKind.OBSERVED


def turn(entry: Entry) -> float:
    """D at the observed minimum, in tokens; NaN where unknown."""
    value = bounds(entry.get("observed"))[0]
    return value if math.isfinite(value) else number(entry.get("observed_tokens"))


def predicted(entry: Entry) -> bool:
    """Whether a turning point is predicted, and believed."""
    return entry.get("verdict_kind") == VerdictKind.PREDICTED


def verdict_text(entry: Entry) -> str:
    """The verdict on one run, configuration and bit-width in one sentence, without a full stop."""
    if observed(entry):
        text = f"harmful beyond D = {_tokens(turn(entry), entry)}, observed inside the range"
        text += _share(entry)
        return text
    if (kind := entry.get("verdict_kind")) in _FROM_FORECAST:
        return _FROM_FORECAST[kind](entry["answer"], entry)
    if not predicted(entry):
        return f"not identifiable: {reason_text(entry.get('reason'))}"
    factor = short(entry.get("extrapolation_factor"))
    text = f"predicted at {factor}× the largest D seen, D = {_tokens(bounds(entry['predicted'])[0], entry)}"
    if conflict := entry.get("conflict"):
        text += f"; {_conflict(Conflict(conflict), entry)}"
    poor = entry.get("poor_fit")
    return f"{text}; the law describes these deltas poorly ({poor_text(poor)})" if poor else text


def _forecast(answer: Entry, entry: Entry) -> str:
    """A turn with both ends."""
    return f"forecast: harmful beyond D = {_tokens(number(answer['value']), entry)}"


def _not_before(answer: Entry, entry: Entry) -> str:
    """A turn with a lower end alone, whose probability is one-sided."""
    return f"not harmful before D = {_tokens(number(answer['low']), entry)} ({50 + 50 * answer['level']:.0f} %)"


_FROM_FORECAST: Mapping[str, Callable[[Entry, Entry], str]] = {
    VerdictKind.FORECAST: _forecast,
    VerdictKind.NOT_BEFORE: _not_before,
}


def _conflict(conflict: Conflict, entry: Entry) -> str:
    if conflict is Conflict.NO_SECOND_CHECKPOINT:
        return "inside the range of the fit, but this run has no second checkpoint to check it"
    lowest = _tokens(number(entry["observed_tokens"]), entry)
    return f"not confirmed by the measurement: the loss is lowest at D = {lowest}, but no turn is observed there"


def _share(entry: Entry) -> str:
    """What the full-precision loss has to do with an observed rise; "" if little or nothing."""
    share, own, rise = entry.get("full_precision_share"), number(entry.get("full_precision_rise")), entry.get("rise")
    if share == Share.MAIN:
        size = f" ({short(own)} of {short(rise)} nats per token)" if own > 0 else ""
        return f"; but the full-precision loss rises too{size}: quantization is not the only cause"
    if share == Share.PART:
        return f"; {short(own)} of the rise of {short(rise)} nats per token is the full-precision loss's own"
    return ""


def _tokens(tokens: float, entry: Entry) -> str:
    share = tokens / number(entry.get("params"))
    return f"{count(tokens)} tokens" + (f" (D/N = {ratio(share)})" if math.isfinite(share) else "")


def verdict(entry: Entry) -> str:
    """The verdict on one run, configuration and bit-width, with its numbers, as one to three sentences."""
    text = verdict_text(entry)
    sentences = [text[0].upper() + text[1:]]
    if observed(entry):
        sentences += _about_observed(entry)
    elif predicted(entry):
        sentences += _interval("Interval of the prediction", entry.get("predicted"))
    elif entry.get("verdict_kind") == VerdictKind.FORECAST:
        sentences += _interval("Interval of the forecast", entry.get("answer"))
    if not observed(entry):
        sentences += power_text(entry)
    return ". ".join(sentences) + "."


def power_text(entry: Entry) -> list[str]:
    """Which rise would have been seen where no turn was, as one sentence or none."""
    if entry.get("untested") == Untested.FEW_CHECKPOINTS:
        return [f"With {plural(entry['n_checkpoints'], 'checkpoint')} no turn can be tested for"]
    rise = number(entry.get("detectable_rise"))
    if not math.isfinite(rise):
        return []
    return [
        f"No turn is observed; a rise of {short(rise)} nats per token would have been seen with probability {POWER:g}"
    ]


def _about_observed(entry: Entry) -> list[str]:
    sentences = _interval("Interval of the turn", entry.get("observed"))
    rise = plus_minus(entry.get("rise"), entry.get("rise_se"))
    if rise != MISSING:
        sentences.append(
            f"By the last checkpoint the loss after quantization has risen by {rise} nats per token{_p(entry)}"
        )
    if math.isfinite(bounds(entry.get("predicted"))[0]):
        sentences.append(f"The fits put the turn at {tokens_estimate(entry.get('predicted'))}")
    return sentences


def _p(entry: Entry) -> str:
    p = number(entry.get("adjusted_p"))
    return f" (p = {short(p)} with control over all lines)" if math.isfinite(p) else ""


def _interval(what: str, entry: Entry | None) -> list[str]:
    _, low, high = bounds(entry)
    return [] if end(low) == end(high) == OPEN else [f"{what}: {end(low)} to {end(high)}"]


def early(study: Study) -> str:
    """How many deltas ended before the last window and what that means for their row; "" where none did."""
    words = _early(study, study.measured)
    meaning = (
        "their standard error is that of the windows measured, and their loss_q is the full-precision loss over all "
        "windows plus δ"
    )
    return f"{words}; {meaning}." if words else ""


def _early(study: Study, rows: Frame) -> str:
    used, whole = study.early(rows)
    return early_text(len(used), len(rows), statistics.median(used), used[0], used[-1], whole) if used else ""


def sentences(study: Study) -> Iterator[tuple[str, str, str, Entry]]:
    """(run, "gptq, 2 bits", sentences, entry) of every entry on critical tokens, in the study's order."""
    place = {name: i for i, name in enumerate([*study.runs, *study.labels])}

    def order(entry: Entry) -> tuple[float, float, float]:
        run, label = str(entry.get("run")), study.label_of(entry)
        return place.get(run, math.inf), place.get(label, math.inf), number(entry.get("bits"))

    for entry in sorted(study.critical, key=order):
        what = f"{study.label_of(entry)}, {number(entry.get('bits')):.0f} bits"
        yield str(entry.get("run")), what, verdict(entry), entry


def unknown_tokens(study: Study) -> Iterator[tuple[str, str]]:
    """(run, sentences) of every run that was measured and none of whose measured checkpoints has a known D."""
    rows = study.measured
    for run in study.runs:
        mine = rows[rows["trajectory"] == run]
        if len(mine) and mine["tokens"].isna().all():
            measured = plural(mine["point"].nunique(), "measured checkpoint")
            words = (
                f"Not identifiable: D is unknown for {measured}, so nothing was fitted. Give `--tokens-per-step` or "
            )
            yield run, words + "`--tokens`, or write a `trajectory.yaml`, and run the same command again."


def warning_texts(cautions: Sequence[Entry]) -> list[str]:
    """The cautions of `fit.json` as sentences; one of several quantizers where these have the same."""
    texts: dict[str, None] = {}
    for one in cautions:
        kind = Caution(one["kind"])
        if kind in _GROUPED:
            texts[_GROUPED[kind]([other for other in cautions if other["kind"] == kind])] = None
        else:
            texts[_TEXTS[kind](one)] = None
    return list(texts)


def _full_precision_rises(facts: Entry) -> str:
    size = f"{number(facts['rise']):.2g} ± {number(facts['error']):.1g} nats per token at the last checkpoint"
    what = f"{facts['run']}: the full-precision loss itself rises after D = {count(facts['tokens'])} tokens, by {size}"
    return f"{what}: {_SCATTER[facts['scatter']]}"


def _schedule(facts: Entry) -> str:
    runs, kind = facts["runs"], facts["schedule"]
    several = len(runs) > 1
    its, rate = ("their", "learning rates") if several else ("its", "learning rate")
    if kind == "annealed":
        return (
            f"the points of {listed(runs)} are annealed models, each at its own D, not intermediate checkpoints; "
            "branches of one trunk share its seed and data order and are not independent runs"
        )
    form = {"decaying": "{} with a decaying learning rate", "constant": "{} at a constant learning rate"}
    run = form.get(kind, "{} of unknown schedule").format("training runs" if several else "one training run")
    meaning = {
        "decaying": "D and the learning rate change together, and degradation is known to jump when the learning rate "
        f"decays {_SOURCE}, so the learning rate may explain what looks like growth with D",
        "constant": "the learning rate does not confound D, but no model is annealed, and annealed models may degrade "
        f"differently {_SOURCE}",
        "unknown": f"if {its} {rate} {'decay' if several else 'decays'}, the learning rate may explain what looks like "
        f"growth with D {_SOURCE}",
    }[kind]
    return f"the points of {listed(runs)} are intermediate checkpoints of {run}: {meaning}"


def _few_runs(facts: Entry) -> str:
    what = f"only {plural(facts['runs'], 'training run')} (fewer than {facts['needed']})"
    return f"{what}: intervals say little about what another seed or data order would give"


def _no_trend(facts: Entry) -> str:
    what = f"{plural(facts['points'], 'point')} along D (fewer than {facts['needed']})"
    return f"{facts['trajectory']} has {what}: no trend in D can be judged from it"


def _scatter_unsure(facts: Entry) -> str:
    what = f"only {plural(facts['points'], 'point')} along D (fewer than {facts['needed']})"
    return f"{facts['trajectory']} has {what}: too few to know how checkpoints scatter, so none is tested for a turn"


def _runs_of_sizes(facts: Entry) -> str:
    return (
        f"C_T and gamma_N rest on {plural(facts['sizes'], 'size')} of model, and whatever else differs between the "
        "runs counts as size: they have no interval; the critical tokens of these runs are not affected"
    )


def _negative(cautions: Sequence[Entry]) -> str:
    counts = [f"{one['negative']} of {plural(one['deltas'], 'delta')} of {one['quantizer']}" for one in cautions]
    if sum(one["negative"] for one in cautions) == 1:
        return f"{counts[0]} is negative; it is fitted like all others"
    return f"{listed(counts)} are negative; they are fitted like all others"


def _extrapolated(facts: Entry) -> str:
    n, far = facts["extrapolated"], facts["too_far"]
    are = "is" if n == 1 else "are"
    total = plural(facts["critical_tokens"], "critical token count")
    text = f"{n} of {total} {are} extrapolated beyond the largest D seen, by up to {short(facts['largest'])}×"
    return f"{text}; {far} of them by more than {facts['limit']:g}×, too far to believe" if far else text


def _poor_fits(cautions: Sequence[Entry]) -> str:
    which = listed(map(_configuration, cautions))
    return f"the law describes poorly the deltas of {which}: do not rely on its constants or on predictions from them"


def _configuration(facts: Entry) -> str:
    grid = f"group size {facts['group_size']}" if facts["group_size"] else "one scale per row"
    calibration = f", {facts['calibration']}" if facts["calibration"] not in ("", "none") else ""
    return f"{facts['quantizer']} ({grid}{calibration}; {poor_text(facts)})"


_TEXTS: Mapping[Caution, Callable[[Entry], str]] = {
    Caution.NOTHING_TO_FIT: lambda f: "nothing to fit",
    Caution.FULL_PRECISION_RISES: _full_precision_rises,
    Caution.SCHEDULE: _schedule,
    Caution.MIXED_PHASES: lambda f: (
        f"annealed and other checkpoints enter one fit of delta: this mixes the effect of D with that of the learning "
        f"rate {_SOURCE}; fit the folder `annealed` alone"
    ),
    Caution.FEW_RUNS: _few_runs,
    Caution.NO_TREND: _no_trend,
    Caution.SCATTER_UNSURE: _scatter_unsure,
    Caution.RUNS_OF_SIZES: _runs_of_sizes,
    Caution.EXTRAPOLATED: _extrapolated,
}
_GROUPED: Mapping[Caution, Callable[[Sequence[Entry]], str]] = {
    Caution.NEGATIVE_DELTAS: _negative,
    Caution.POOR_FIT: _poor_fits,
}
"""Warnings about one quantizer, several of which make one sentence."""


def notes(results: Results) -> list[str]:
    """What a reader must know of the records behind a report, and the warnings of the run that measured them."""
    overlaps = [o["message"] for o in results.run.get("overlap", {}).values() if o["flagged"]]
    own = [*_excluded(results), *_versions(results), *_unmeasured(results)]
    return [*own, *results.run.get("warnings", []), *_conflicts(results), *dict.fromkeys(overlaps)]


def _excluded(results: Results) -> Iterator[str]:
    for why, n in results.excluded.items():
        yield f"{n} row{'s' * (n != 1)} not fitted: {_REASONS[why]}"


def _versions(results: Results) -> Iterator[str]:
    if total := sum(results.superseded.values()):
        pairs = sorted(results.superseded.items())
        which = ", ".join(f"{count} of {name} version {version}" for (name, version), count in pairs)
        yield f"{total} record{'s' * (total != 1)} superseded by a newer version of the quantizer: {which}"
    for name, found in sorted(results.versions.items()):
        if len(found) > 1:
            mixed = f"{name}: the table mixes rows of versions {' and '.join(found)} (column quantizer_version)"
            yield f"{mixed}; repeat the whole command to measure the older ones again"


def _unmeasured(results: Results) -> Iterator[str]:
    missing = results.n_sound - results.n_measured
    if missing > 0:
        yield f"{missing} of {results.n_sound} checkpoints are not measured yet: this report is partial"


def _conflicts(results: Results) -> Iterator[str]:
    for _, other in results.conflicts:
        name = f"{other.trial.checkpoint.name} {other.trial.quantizer} {other.trial.key()}"
        yield f"two records of one trial differ, the first is used: {name}"
