"""The story of one checkpoint: loaded once, calibrated once, evaluated batch by batch for all its variants.

    session → groups of variants → quantized → scored → one Measurement per trial

Variants whose weights fit in memory together are quantized and evaluated together, so the full-precision logits of a
batch are computed once for all of them.  What fits changes the time a sweep takes and never its results.
"""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ptq_eval.backends.workers import Workers
from ptq_eval.early_stop import StopRule
from ptq_eval.errors import TaskError, UnsupportedModelError
from ptq_eval.measure import answers, doubts
from ptq_eval.measure.cases import Case, Cell, cases_of, cells_of, scored, static_windows
from ptq_eval.measure.doubts import Plausibility
from ptq_eval.measure.evaluate import Evaluator
from ptq_eval.measure.floor import Floor
from ptq_eval.measure.foreign.quantizer import method_of
from ptq_eval.measure.kept import Kept, once
from ptq_eval.measure.memory import return_freed_memory
from ptq_eval.measure.scoring import Scores
from ptq_eval.measure.session import Session
from ptq_eval.measure.tokens import summary
from ptq_eval.measure.trials import Workload
from ptq_eval.measure.variants import Variant
from ptq_eval.records import FULL_PRECISION, Measurement, Trial
from ptq_eval.sampling import design_of

_SHARE_FOR_REFERENCES = 0.1
"""Share of the budget for full-precision outputs that are kept from one group of variants to the next."""

_SHARE_OF_DISK = 0.5
"""Share of the free disk that variants may take where they are not in memory."""

_SHORT = 2e12
"""Operations of a sweep whose parts are not kept: less than a minute's work on any machine."""

_BROKEN = 2.0
"""A full-precision loss above this many times the loss of equally likely tokens comes from no working model."""

Keep = Callable[[Session, Trial, Variant], None]
"""keep(session, trial, variant): called with each variant that has been measured, its codes included."""

Tick = Callable[[float], None]
"""tick(amount): units of work done; one unit is one pass over one window."""


Say = Callable[[str], object]
"""say(stage): what is being done now, in a few words."""


def cost(work: Workload, missing: Sequence[Trial]) -> float:
    """Units of work of a sweep, for a progress bar: windows evaluated, and windows calibrated with."""
    if not missing:
        return 0.0
    quantized = [trial for trial in missing if trial.quantizer != FULL_PRECISION]
    calibrating = calibration_cost(work, missing)
    return (len(quantized) + 1) * len(work.evaluation.ids) + sum(map(calibrating, cells_of(quantized)))


def is_long(work: Workload, missing: Sequence[Trial]) -> bool:
    """Whether parts of a sweep are kept: by its operations, two per parameter and token of its passes."""
    tokens = cost(work, missing) * work.evaluation.ids.shape[1]
    return 2.0 * (work.checkpoint.params_total or 0) * tokens > _SHORT


def calibration_cost(work: Workload, missing: Sequence[Trial]) -> Callable[[Cell], float]:
    """Units of calibration of the trials that share weights: sequential calibration takes a pass of its own, of two
    models where the method needs them (`two_models`); shared ones of one draw of the calibration windows split one
    pass, and every trial with static ranges takes one more."""
    draws = work.calibrations
    sequential = {trial.quantizer: trial.options for trial in missing if trial.calibration == "sequential"}
    passes = {name: 1 + method_of(name, **options).needs_mismatch for name, options in sequential.items()}
    heads = [cell[0] for cell in cells_of(missing)]
    sharing = Counter(trial.calibration_corpus for trial in heads if trial.calibration == "shared")

    def units(cell: Cell) -> float:
        ranges = sum(len(draws.get(static_windows(trial), ())) for trial in cell)
        trial = cell[0]
        windows = draws.get(trial.calibration_corpus) if trial.calibration in ("shared", "sequential") else None
        if windows is None:
            return float(ranges)
        if trial.calibration == "shared":
            return ranges + len(windows) / sharing[trial.calibration_corpus]
        return ranges + float(len(windows) * passes[trial.quantizer])

    return units


def sweep(
    work: Workload,
    missing: Sequence[Trial],
    *,
    device: str = "cpu",
    trust_remote_code: bool = False,
    memory: int | None = None,
    workers: Workers | None = None,
    tick: Tick,
    keep: Keep | None = None,
    unfinished: Path | None = None,
    say: Say | None = None,
) -> Iterator[Measurement]:
    """Measure the `missing` trials of a workload, the full-precision one first.

    `memory` is what the weights of the model and its variants may take on the device (bytes), by default most of what
    is free; `workers` are the processes of backends, which outlive the sweep (by default it has its own); `keep` is
    called with each variant; finished parts of the work are kept in the folder `unfinished` until the sweep ends, and
    an interrupted one goes on from there; say(stage) is called as each stage begins.  `provenance["seconds"]` of a
    record is its share of the work: variants that are measured together split the seconds of their group equally, and
    the first group's include loading, so that a sweep's records add up to its time.  Raises PtqEvalError when the
    checkpoint cannot be loaded or the device runs out of memory.
    """
    if not missing:
        return
    say = say or (lambda stage: None)
    quantized = [trial for trial in missing if trial.quantizer != FULL_PRECISION]
    wants_full = len(quantized) < len(missing)
    calibrating, started = calibration_cost(work, missing), time.monotonic()
    options: dict[str, Any] = {"device": device, "memory": memory, "trust_remote_code": trust_remote_code}
    long = keep is None and is_long(work, missing) and (device == "cpu" or unfinished is not None)
    with (
        Kept.opened(unfinished, device.partition(":")[0]) if long else nullcontext() as kept,
        Session.opened(work, workers=workers, kept=kept, **options) as session,
    ):
        evaluator = _evaluator(session, tick)
        say("noise floor")
        floor = Floor(session, full=wants_full)
        plausibility = Plausibility(session.model, evaluator) if not session.offloaded else None
        for group in _groups(session, evaluator, cells_of(quantized), beside=floor.nbytes):
            return_freed_memory()
            say("quantizing")
            cases = cases_of(session, group, with_codes=keep is not None)
            tick(sum(map(calibrating, group)))
            return_freed_memory()
            say("evaluating")
            answered = {id(case): _answers(session, case, tick) for case in cases if case.trial.task}
            found = list(scored(evaluator, cases))
            say("noise floor")
            measured = [_full_record(session, evaluator, floor)] if wants_full else []
            record = partial(_case_record, session, evaluator, floor, plausibility, keep)
            measured += [answered.get(id(case)) or record(case, *one) for case, one in zip(cases, found)]
            facts = session.provenance((time.monotonic() - started) / len(measured))
            yield from (replace(measurement, provenance=facts) for measurement in measured)
            for variant in filter(None, (case.variant for case in cases)):
                variant.weights.clear()
            wants_full, started = False, time.monotonic()


def _evaluator(session: Session, tick: Tick) -> Evaluator:
    """What scores the variants of a session on its evaluation windows."""
    work = session.work
    stop = work.trials[0].stop
    rule = StopRule(**stop) if stop else None
    design = design_of(work.evaluation.sample, len(work.evaluation))
    options: dict[str, Any] = {"rule": rule, "design": design, "tick": tick, "kept": session.kept, "tokens": True}
    return Evaluator(session.model, session.evaluation, **options)


def _full_record(session: Session, evaluator: Evaluator, floor: Floor) -> Measurement:
    """The record in full precision, with its noise floor.  Raises UnsupportedModelError for a model that is broken."""
    work = session.work
    _require_sane(work, evaluator.full.nll, session.model.vocab_size)
    full = _record(work, work.trials[0], evaluator.full)
    return _with(full, {**floor.numerics(full.nll), **floor.second_order()} if full.nll else {})


def _case_record(
    session: Session,
    evaluator: Evaluator,
    floor: Floor,
    plausibility: Plausibility | None,
    keep: Keep | None,
    case: Case,
    windows: Sequence[int],
    scores: Scores,
) -> Measurement:
    """The record of a case with its noise floor and doubts; `keep` is called with its variant."""
    record = _quantized_record(session.work, case, scores, windows)
    if case.simulation is not None or case.variant is None:
        return _doubted(record, case, evaluator, None, windows, scores)
    if record.nll:
        record = _with(record, floor.rounding(case.variant))
    if keep is not None:
        keep(session, case.trial, case.variant)
        case.variant.weights = {name: weight.clone() for name, weight in case.variant.weights.items()}
    return _doubted(record, case, evaluator, plausibility, windows, scores)


def _groups(session: Session, evaluator: Evaluator, cells: Sequence[Cell], beside: float = 0.0) -> list[list[Cell]]:
    """Cells whose variants are kept at the same time; at least one group, which may be empty.

    `beside` is what else takes memory of the budget (bytes).
    Where there are several groups, the evaluator keeps full-precision outputs in the memory that they leave.
    """
    model, budget = session.model, session.budget
    variant_bytes = sum(model.weight_bytes(name) for name in model.matrices())
    references = _SHARE_FOR_REFERENCES * budget.each
    if session.kept is None:
        taken = sum(parameter.nbytes for parameter in model.module.parameters()) + evaluator.working_bytes + beside
        size = budget.variants(taken, variant_bytes)
        if size < len(cells):
            size = budget.variants(taken + references, variant_bytes)
            references = min(references, max(0.0, budget.total - taken - size * variant_bytes))
    else:
        size = max(1, int(_SHARE_OF_DISK * shutil.disk_usage(session.kept.folder).free // variant_bytes))
    if size < len(cells):
        evaluator.budget = references
    return [list(cells[i : i + size]) for i in range(0, len(cells), size)] or [[]]


def _record(work: Workload, trial: Trial, scores: Scores, windows: Sequence[int] = ()) -> Measurement:
    """The record of `scores` on these windows (empty: all of them); failed if a number is not finite."""
    n_bytes = work.evaluation.n_bytes
    if n_bytes is not None and windows:
        n_bytes = n_bytes[list(windows)]
    measurement = Measurement(
        trial=trial,
        nll=tuple(scores.nll),
        n_tokens=(work.evaluation.ids.shape[1] - 1,) * len(scores.nll),
        n_bytes=tuple(int(b) for b in n_bytes) if n_bytes is not None else (),
        kl=tuple(scores.kl),
        agree=tuple(scores.agree),
        windows=tuple(windows),
    )
    for name, values in (("loss", scores.nll), ("KL", scores.kl)):
        if not all(map(math.isfinite, values)):
            return _failed(measurement, f"the {name} is not finite")
    return replace(measurement, tokens=summary(scores.tokens)) if scores.tokens else measurement


def _require_sane(work: Workload, nll: Sequence[float], vocab_size: int) -> None:
    """Raise UnsupportedModelError for a full-precision loss far above the loss of equally likely tokens.

    An untrained model is near it, and one that reads another tokenizer's ids somewhat above; twice that takes a model
    that is confident of wrong tokens, such as one whose weights have lost their scales.
    """
    loss, guess = sum(nll) / (len(nll) * (work.evaluation.ids.shape[1] - 1)), math.log(vocab_size)
    if math.isfinite(loss) and loss > _BROKEN * guess:
        raise UnsupportedModelError(
            f"{work.checkpoint.name}: the full-precision loss is {loss:.4g} nats per token, and equally likely tokens "
            f"have {guess:.3g}: the model does not predict this text",
            remedy="check that the weights, and their scale, fit config.json, and that the token ids of the text "
            "come from this model's tokenizer; or exclude the step",
        )


def _quantized_record(work: Workload, case: Case, scores: Scores, windows: Sequence[int]) -> Measurement:
    """The record of a case that has seen `windows`, with what happened while it was quantized."""
    variant, early = case.variant, len(windows) < len(work.evaluation.ids)
    measurement = _record(work, case.trial, scores, windows if early else ())
    details = {**(variant.details() if variant else {}), **({"stopped_early": early} if case.trial.stop else {})}
    bits = variant.bits_per_weight if variant and variant.stored_weights else None
    measurement = replace(measurement, bits_per_weight=bits, details=details)
    if case.failure:
        return _failed(measurement, case.failure)
    if variant and variant.skipped and measurement.status != "failed":
        named = ", ".join(list(variant.skipped)[:3])
        message = f"{len(variant.skipped)} layers left in full precision: {named}"
        return replace(measurement, status="partial", message=message)
    return measurement


def _answers(session: Session, case: Case, tick: Tick) -> Measurement:
    """The record of a case's answers to its task."""
    measurement, task = Measurement(case.trial), case.trial.task
    failure = case.failure
    if not failure:
        try:
            found = answers.answer(session, task, case.carried, case.simulation)
        except TaskError as error:
            failure = str(error)
        else:
            details = {**(case.variant.details() if case.variant else {}), "answers": found}
            measurement = replace(measurement, details=details)
    tick(len(session.evaluation))
    return _failed(measurement, failure) if failure else measurement


def _doubted(
    measurement: Measurement,
    case: Case,
    evaluator: Evaluator,
    plausibility: Plausibility | None,
    windows: Sequence[int],
    scores: Scores,
) -> Measurement:
    """The record with what gives reason to doubt it.  With `plausibility`, the variant's weights are used up."""
    variant, details = case.variant, dict[str, Any]()
    found = _of_weights(variant) if variant is not None else []
    if measurement.nll:
        found += doubts.of_losses(scores.nll, evaluator.full_at(windows))
    if measurement.nll and plausibility and variant and not variant.others and variant.weights:
        probe = partial(plausibility.ratio, variant.weights, windows, scores)
        ratio = once(variant.kept, f"{variant.name} second order", probe)
        details["second_order_ratio"] = ratio
        found += doubts.of_ratio(ratio)
    return _with(measurement, {**details, **({"doubts": found} if found else {})})


def _of_weights(variant: Variant) -> list[dict[str, Any]]:
    return [
        *variant.witness.doubts(),
        *doubts.of_rounded(variant.facts.get("rounded_to_nearest", ()), len(variant.weights)),
        *doubts.of_backend(variant.facts.get("backend", {})),
    ]


def _with(measurement: Measurement, details: Mapping[str, Any]) -> Measurement:
    return replace(measurement, details={**measurement.details, **details})


def _failed(measurement: Measurement, message: str) -> Measurement:
    nothing: dict[str, Any] = dict.fromkeys(("nll", "n_tokens", "n_bytes", "kl", "agree", "windows"), ())
    return replace(measurement, status="failed", message=message, tokens={}, **nothing)
