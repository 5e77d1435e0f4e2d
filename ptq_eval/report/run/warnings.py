"""The warnings of a fit as sentences; `laws.warnings` decides which of them apply."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ptq_eval.laws.findings import Caution
from ptq_eval.report.common.numbers import count, number, short
from ptq_eval.report.common.words import listed, plural, poor_text

Facts = Mapping[str, Any]

_SCATTER = {
    "within": "within the scatter of checkpoints",
    "unknown": "there are too few checkpoints to know whether that is their scatter",
    "beyond": "the model got worse, not only its quantized form",
}
_SOURCE = "(arXiv 2510.06213)"


def warning_text(caution: Facts) -> str:
    """A caution of `fit.json` as a sentence."""
    return _TEXTS[Caution(caution["kind"])](caution)


def _full_precision_rises(facts: Facts) -> str:
    size = f"{number(facts['rise']):.2g} ± {number(facts['error']):.1g} nats per token at the last checkpoint"
    what = f"{facts['run']}: the full-precision loss itself rises after D = {count(facts['tokens'])} tokens, by {size}"
    return f"{what}: {_SCATTER[facts['scatter']]}"


def _schedule(facts: Facts) -> str:
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


def _few_runs(facts: Facts) -> str:
    what = f"only {plural(facts['runs'], 'training run')} (fewer than {facts['needed']})"
    return f"{what}: intervals say little about what another seed or data order would give"


def _no_trend(facts: Facts) -> str:
    what = f"{plural(facts['points'], 'point')} along D (fewer than {facts['needed']})"
    return f"{facts['trajectory']} has {what}: no trend in D can be judged from it"


def _scatter_unsure(facts: Facts) -> str:
    what = f"only {plural(facts['points'], 'point')} along D (fewer than {facts['needed']})"
    return f"{facts['trajectory']} has {what}: too few to know how checkpoints scatter, so a turn may be chance"


def _runs_of_sizes(facts: Facts) -> str:
    return (
        f"C_T and gamma_N rest on {plural(facts['runs'], 'run')} of different sizes: their intervals do not cover "
        "differences between runs and are far too narrow; the critical tokens of these runs are not affected"
    )


def _negative(facts: Facts) -> str:
    n, deltas = facts["negative"], facts["deltas"]
    are = "is negative; it is fitted like all others" if n == 1 else "are negative; they are fitted like all others"
    return f"{facts['quantizer']}: {n} of {plural(deltas, 'delta')} ({100 * n / deltas:.0f} %) {are}"


def _extrapolated(facts: Facts) -> str:
    n, far = facts["extrapolated"], facts["too_far"]
    are = "is" if n == 1 else "are"
    total = plural(facts["critical_tokens"], "critical token count")
    text = f"{n} of {total} {are} extrapolated beyond the largest D seen, by up to {short(facts['largest'])}×"
    return f"{text}; {far} of them by more than {facts['limit']:g}×, too far to believe" if far else text


def _poor_fit(facts: Facts) -> str:
    grid = f"group size {facts['group_size']}" if facts["group_size"] else "one scale per row"
    calibration = f", {facts['calibration']}" if facts["calibration"] not in ("", "none") else ""
    return (
        f"{facts['quantizer']} ({grid}{calibration}): the law describes these deltas poorly ({poor_text(facts)}); do "
        "not rely on its constants or on predictions from them"
    )


_TEXTS: Mapping[Caution, Callable[[Facts], str]] = {
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
    Caution.NEGATIVE_DELTAS: _negative,
    Caution.EXTRAPOLATED: _extrapolated,
    Caution.POOR_FIT: _poor_fit,
}
