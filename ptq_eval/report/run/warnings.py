"""The sentences of a run's warnings: about its fits, and notes on its records.

Which warnings apply is decided where the laws are fitted (`laws.warnings`); here they are said in words, and what is
the same for several quantizers is said once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ptq_eval.laws.findings import Caution
from ptq_eval.report.common.numbers import count, number, short
from ptq_eval.report.common.words import listed, plural, poor_text
from ptq_eval.report.run.doubts import doubt_texts
from ptq_eval.results.load import Results
from ptq_eval.results.points import Skipped

Entry = Mapping[str, Any]

_REASONS = {
    Skipped.NOT_MEASURED: "status other than ok or partial",
    Skipped.TOKENS_UNKNOWN: "tokens unknown, or none seen (D = 0)",
    Skipped.PARAMS_UNKNOWN: "parameters unknown",
    Skipped.OTHER_CALIBRATION: "another calibration than the first, with which the report compares them",
    Skipped.RUNTIME: "activations or cache quantized, which the report shows in a section of their own",
}
_SCATTER = {
    "within": "within the scatter of checkpoints",
    "unknown": "there are too few checkpoints to know whether that is their scatter",
    "beyond": "the model got worse, not only its quantized form",
}
_CELL, _PLACE, _FEW = ["quantizer", "format", "bits"], ["run", "step"], 6
_NEAR_A_GUESS = 0.01
"""Nats per token."""

_SOURCE = "(arXiv 2510.06213)"


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
    counts = [f"{one['negative']} of {plural(one['deltas'], 'delta')} of {method(one)}" for one in cautions]
    if sum(one["negative"] for one in cautions) == 1:
        return f"{counts[0]} is negative; it is fitted like all others"
    return f"{listed(counts)} are negative; they are fitted like all others"


def _extrapolated(facts: Entry) -> str:
    n, far = facts["extrapolated"], facts["too_far"]
    are = "is" if n == 1 else "are"
    total = plural(facts["critical_tokens"], "critical token count")
    text = f"{n} of {total} {are} extrapolated beyond the largest D seen, by up to {short(facts['largest'])}×"
    return f"{text}; {far} of them by more than {facts['limit']:g}×, too far to believe" if far else text


def method(facts: Entry) -> str:
    """A quantizer, with the number format where that is not plain integers."""
    named = facts.get("format") or "int"
    return str(facts["quantizer"]) + (f" {named}" if named != "int" else "")


def _poor_fits(cautions: Sequence[Entry]) -> str:
    which = listed(map(_configuration, cautions))
    return f"the law describes poorly the deltas of {which}: do not rely on its constants or on predictions from them"


def _configuration(facts: Entry) -> str:
    grid = f"group size {facts['group_size']}" if facts["group_size"] else "one scale per row"
    calibration = f", {facts['calibration']}" if facts["calibration"] not in ("", "none") else ""
    if facts.get("format") == "":
        grid = "all formats"
    return f"{method(facts)} ({grid}{calibration}; {poor_text(facts)})"


_TEXTS: Mapping[Caution, Callable[[Entry], str]] = {
    Caution.NOTHING_TO_FIT: lambda f: "nothing to fit",
    Caution.FULL_PRECISION_RISES: _full_precision_rises,
    Caution.SCHEDULE: _schedule,
    Caution.MIXED_PHASES: lambda f: (
        f"annealed and other checkpoints enter one fit of delta: this mixes the effects of D and of the learning "
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
"""Warnings about one quantizer; several of them are joined into one sentence."""


def notes(results: Results) -> list[str]:
    """What a reader must know of the records behind a report, and the warnings of the run that measured them."""
    overlaps = [o["message"] for o in results.run.get("overlap", {}).values() if o["flagged"]]
    own = [
        *doubt_texts(results.frame),
        *_excluded(results),
        *_versions(results),
        *_unmeasured(results),
        *_damaged(results),
        *_worse_than_a_guess(results),
    ]
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


def _damaged(results: Results) -> Iterator[str]:
    """The lines of records that cannot be read, and the cells that the other checkpoints have and one lacks."""
    if not results.damaged:
        return
    which = listed([f"line {line} of {path.relative_to(results.folder)}" for path, line in results.damaged[:_FEW]])
    frame: Any = results.frame[results.frame["quantizer"] != ""]
    cells, places = (frame[columns].drop_duplicates() for columns in (_CELL, _PLACE))
    every = cells.merge(places, how="cross")
    absent = every.merge(frame[_CELL + _PLACE], how="left", indicator=True).query("_merge == 'left_only'")
    names = [f"{row['run']}@{row['step']:g} {method(row)} {row['bits']:g} bits" for row in absent.to_dict("records")]
    missing = f"missing here are {listed(names[:_FEW])}; " if names else ""
    number = plural(len(results.damaged), "record")
    yield f"{number} cannot be read ({which}): {missing}repeat ptq-eval run to measure what is missing"


def _worse_than_a_guess(results: Results) -> Iterator[str]:
    """Checkpoints whose full-precision loss is no better than with equally likely tokens."""
    for run, model in results.run.get("models", {}).items():
        if not model.get("vocab_size"):
            continue  # a folder of an earlier version
        guess = math.log(model["vocab_size"])
        losses = results.frame.loc[results.frame["run"] == run, ["step", "loss_fp"]].dropna().drop_duplicates()
        found = losses[losses["loss_fp"] > guess - _NEAR_A_GUESS]
        if len(found):
            steps = listed([f"{step:g}" for step in found["step"]])
            yield (
                f"{run}: at step{'s' * (len(found) > 1)} {steps} the full-precision loss is up to "
                f"{found['loss_fp'].max():.2f} nats per token, and equally likely tokens have {guess:.2f}: the model "
                "is untrained, its weights do not fit config.json, or the token ids of the text come from another "
                "tokenizer"
            )


def _conflicts(results: Results) -> Iterator[str]:
    for _, other in results.conflicts:
        name = f"{other.trial.checkpoint.name} {other.trial.quantizer} {other.trial.key()}"
        yield f"two records of one trial differ, the first is used: {name}"
