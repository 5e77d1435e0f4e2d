"""From checkpoints to a record of what theory predicts and what is measured, one entry per checkpoint.

    from ptq_eval import sensitivity

    record, problems = sensitivity("my-run/", "out/", bits=(2, 3, 4), steps="first,last")

    discover → choose → verify → plan → (quantize, gradients, slope, one layer at a time) → sensitivity.json
                                        (quantize, one part at a time) → parts.json    by="part"

The record is rewritten after each checkpoint, and an entry is recognised by its weights and by everything that changes
its numbers, so a job that was interrupted continues.  Gradients are taken on the calibration text, damage is measured
on the evaluation text, both in float32: a second-order expansion needs digits that shorter types lack.

Cost of a checkpoint: an evaluation for each layer × bit-width × quantizer, `draws` backward passes over the calibration
windows and one over the evaluation windows, a window at a time.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ptq_eval.checkpoints import Overrides, discover, verify_all
from ptq_eval.config.run import RunConfig
from ptq_eval.config.study import STEP_WORDS, Budget, SensitivityConfig
from ptq_eval.errors import MeasurementFailedError, OptionError, PtqEvalError
from ptq_eval.jobs import mixed
from ptq_eval.measure.foreign.quantizer import Foreign, method_of
from ptq_eval.measure.session import Session
from ptq_eval.measure.texts import Texts, calibration_requests
from ptq_eval.measure.trials import Workload, make_plan, quantizers_of
from ptq_eval.measure.variants import Variant
from ptq_eval.records import Checkpoint, Progress, Trial
from ptq_eval.report.mixed import page as mixed_page
from ptq_eval.report.parts import page as parts_report
from ptq_eval.report.sensitivity import page as report
from ptq_eval.results.manifest import git_state
from ptq_eval.sampling import design_of
from ptq_eval.theory.parts import parts_of
from ptq_eval.theory.parts import rows as part_rows
from ptq_eval.theory.sensitivity import rows
from ptq_eval.theory.summary import agreements, bounds

FORMAT = 1
"""Raised whenever the numbers of a record change their meaning."""

_IF_SET = ("bos", "formats", "mixed", "calib_length", "include_embedding")
"""Options that are recorded only if set, so that records made before they existed stay valid."""

_LESS_MEMORY = "a shorter --seq-len, or a device with more memory"


def sensitivity(
    folders: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    steps: str | int | Sequence[int | str] = "all",
    draws: int = 2,
    by: str = "layer",
    budget: Any = (),
    overrides: Overrides | Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[dict[str, Any], list[PtqEvalError]]:
    """Damage per layer, measured and predicted, of checkpoints under `folders`; written to the folder `out`.

    With `by="part"`, the measured damage of embedding, head, attention and MLP instead.  With a `budget`, such as
    "3.5bits" or "60MB", or several, plans of mixed precision as well (`jobs.mixed`), in `mixed.json`.

    `steps`: steps and the words all, first and last, as a sequence or separated by commas.  `draws` is the number of
    labels drawn per window for the Fisher information.  `options` are fields of `config.run.RunConfig` (quantizers: rtn
    by default).  Returns the content of `sensitivity.json`, and the errors of checkpoints that were excluded.
    Raises PtqEvalError subclasses.
    """
    study = SensitivityConfig.of({"steps": steps, "draws": draws, "by": by, "budget": budget})
    parts = study.by == "part"
    page = parts_report if parts else report
    config = _config({**options, "include_head": True, "include_embedding": True} if parts else options, study)
    progress = progress or (lambda what, done, total: None)
    roots = [folders] if isinstance(folders, (str, Path)) else list(folders)
    found = chosen(discover(roots, overrides=overrides), study.steps)
    checkpoints = verify_all(
        found,
        progress=lambda done, total, _name: progress("reading weights", done, total),
        trust_remote_code=config.trust_remote_code,
    )
    plan = make_plan(checkpoints, config, progress)
    if not plan.workloads:
        raise plan.excluded[0][1]
    if study.budget:
        mixed.refuse_early(plan.workloads, config, study.budget)
    record = _header(config, None if parts else study.draws)
    old = page.read(Path(out))
    if old is not None and old.get("settings") == record["settings"]:
        record["checkpoints"] = old["checkpoints"]
    texts, problems = Texts(config, progress), [error for _, error in plan.excluded]
    for work in plan.workloads:
        key = _key(work, record["settings"])
        if key in [entry["key"] for entry in record["checkpoints"] if _is_whole(entry)]:
            continue
        measured = _by_part(work, config, progress) if parts else _entry(work, texts, config, study.draws, progress)
        problems += _failures(work.checkpoint, measured["failed"])
        _enter(record, {"key": key, **measured})
        page.write_record(Path(out), record)
    if not record["checkpoints"]:
        raise problems[0]
    page.write(Path(out), record)
    if study.budget:
        _plan_mixed(plan.workloads, record, study.budget, Path(out), config, progress)
    return record, problems


def _is_whole(entry: Mapping[str, Any]) -> bool:
    """Whether nothing of a checkpoint has to be measured again: rows of 0.1 have no keys of trials."""
    return not entry.get("failed") and all("key" in row for row in entry["rows"])


def _enter(record: dict[str, Any], entry: Mapping[str, Any]) -> None:
    """Put a checkpoint's entry in its place, for an older one that was incomplete; nothing if it has no rows."""
    others = [other for other in record["checkpoints"] if other["key"] != entry["key"]]
    entries = [*others, entry] if entry["rows"] else others
    record["checkpoints"] = sorted(entries, key=lambda e: (e["run"], e["tokens"] or 0, e["step"] or 0))


def _failures(checkpoint: Checkpoint, failed: Sequence[Mapping[str, Any]]) -> list[PtqEvalError]:
    """One error for all that failed at a checkpoint."""
    if not failed:
        return []
    what = f"{len(failed)} of the quantized models of {checkpoint.name} failed"
    first = f"{failed[0]['quantizer']}, {failed[0]['bits']} bits: {failed[0]['reason']}"
    return [MeasurementFailedError(what, got=first, remedy="the others are measured; repeat the command to try again")]


def _config(options: Mapping[str, Any], study: SensitivityConfig) -> RunConfig:
    config = RunConfig.of({"quantizers": ("rtn",), **options})
    if config.dtype != "float32":
        raise OptionError("a study of sensitivity needs float32", got=config.dtype, remedy="omit --dtype")
    if config.shard != (1, 1):
        raise OptionError(
            "a study of sensitivity cannot be sharded", got=config.shard, remedy="choose --steps for each process"
        )
    config.require_one_calibration("a study of sensitivity uses one draw of calibration windows")
    config.require_weights_only("a study of sensitivity is about weights")
    if config.precision is not None:
        raise OptionError(
            "a study of sensitivity uses every window", got=f"precision={config.precision}", remedy="omit it"
        )
    if config.mixed:
        raise OptionError(
            "a study of sensitivity measures one number format at a time", got="mixed", remedy="--budget makes a plan"
        )
    if config.include_embedding and study.by != "part" and not study.budget:
        raise OptionError(
            "an embedding has no inputs, which a study by layer needs",
            got="--include-embedding",
            remedy="omit it; --by part and --budget have the embedding",
        )
    quantizers = quantizers_of(config)
    foreign = [name for name, one in quantizers.items() if isinstance(one, Foreign)]
    for asked, flag, what in (
        (study.by == "part", "--by part", "quantize no embedding"),
        (study.budget, "--budget", "quantize all layers alike"),
    ):
        if asked and foreign:
            remedy = f"omit {flag}, or measure backends in a study of their own"
            raise OptionError(f"backends {what}", got=f"{foreign[0]} with {flag}", remedy=remedy)
    config.resolve_device()
    return config


def chosen(checkpoints: Sequence[Checkpoint], steps: Sequence[int | str]) -> list[Checkpoint]:
    """The checkpoints that `steps` names, in every run.  Raises OptionError for one that does not exist."""
    by_run: dict[str, list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        by_run.setdefault(checkpoint.run, []).append(checkpoint)
    kept = [
        checkpoint
        for own in by_run.values()
        for index, checkpoint in enumerate(own)
        if "all" in steps
        or checkpoint.step in steps
        or ("first" in steps and index == 0)
        or ("last" in steps and index == len(own) - 1)
    ]
    known = {*STEP_WORDS, *(checkpoint.step for checkpoint in checkpoints)}
    unknown = [str(step) for step in steps if step not in known]
    if unknown or not kept:
        there = ", ".join(str(checkpoint.step) for checkpoint in checkpoints[:12])
        raise OptionError(
            "--steps names no checkpoint",
            got=", ".join(unknown or map(str, steps)),
            allowed=f"all, first, last, {there}",
        )
    return kept


def _header(config: RunConfig, draws: int | None) -> dict[str, Any]:
    measured = {**config.measured(), **config.first_calibration()}
    settings = {
        **{name: value for name, value in measured.items() if value or name not in _IF_SET},
        "seed": config.seed,
        "device": config.resolve_device().split(":")[0],
        **({} if draws is None else {"draws": draws}),
        "versions": {name: method_of(name).version for name in config.quantizers},
    }
    return {"format": FORMAT, "settings": json.loads(json.dumps(settings)), "git": git_state(), "checkpoints": []}


def _key(work: Workload, settings: Mapping[str, Any]) -> str:
    checkpoint = work.checkpoint
    identity = [checkpoint.run, checkpoint.step, checkpoint.revision, checkpoint.weights_sha, work.evaluation.digest]
    text = json.dumps([FORMAT, identity, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _entry(work: Workload, texts: Texts, config: RunConfig, draws: int, progress: Progress) -> dict[str, Any]:
    """One checkpoint, loaded, measured and predicted; `provenance.seconds` is the time of all that."""
    started, checkpoint = time.monotonic(), work.checkpoint
    labelled, skipped, failed = [], [], []
    with Session.opened(work, **session_options(config)) as session:
        model, evaluation = session.model, session.evaluation
        (wanted,) = calibration_requests(config, work.evaluation.seq_len)
        cut = texts.cut(wanted, checkpoint, work.folder, model.vocab_size)
        designs = [design_of(windows.sample, len(windows)) for windows in (work.evaluation, cut)]
        groups = session.fitting(work.trials[1:])
        passes = len(groups) * (len(cut.ids) + 2 * len(evaluation))
        total = passes + len(evaluation) * (len(work.trials) - 1) * (len(model.linears()) + 1)
        tick = ticker(progress, f"sensitivities of {checkpoint.name}", total)
        for group in groups:
            made = _made(session.quantized(group), group, failed)
            drawing = {"draws": draws, "seed": config.seed, "designs": (designs[0], designs[1])}
            for _, variant in made:
                variant.weights.pop(model.embedding or "", None)  # it has no inputs; `mixed` measures it
            variants = [variant for _, variant in made]
            found = rows(model, evaluation, torch.tensor(cut.ids), variants, tick=tick, **drawing) if made else []
            for (trial, variant), own in zip(made, found):
                _label(trial, variant, own, labelled, skipped)
        provenance = session.provenance(time.monotonic() - started)
    return {
        **_about(checkpoint),
        "rows": labelled,
        "agreement": agreements(labelled),
        "bounds": bounds(labelled),
        "skipped": skipped,
        "failed": failed,
        "texts": {"evaluation": work.evaluation.describe(), "calibration": cut.describe()},
        "provenance": provenance,
    }


def _by_part(work: Workload, config: RunConfig, progress: Progress) -> dict[str, Any]:
    """One checkpoint, loaded and measured by part; `provenance.seconds` is the time of all that."""
    started, checkpoint = time.monotonic(), work.checkpoint
    labelled, skipped, failed = [], [], []
    with Session.opened(work, **session_options(config)) as session:
        groups = session.fitting(work.trials[1:])
        passes = (len(parts_of(session.model)) + 1) * (len(work.trials) - 1) + len(groups)
        tick = ticker(progress, f"parts of {checkpoint.name}", passes * len(session.evaluation))
        design = design_of(work.evaluation.sample, len(work.evaluation))
        for group in groups:
            made = _made(session.quantized(group, with_codes=True), group, failed)
            variants = [variant for _, variant in made]
            found = part_rows(session.model, session.evaluation, variants, design=design, tick=tick) if made else []
            for (trial, variant), own in zip(made, found):
                _label(trial, variant, own, labelled, skipped)
        provenance = session.provenance(time.monotonic() - started)
    return {
        **_about(checkpoint),
        "rows": labelled,
        "skipped": skipped,
        "failed": failed,
        "texts": {"evaluation": work.evaluation.describe()},
        "provenance": provenance,
    }


def _plan_mixed(
    works: Sequence[Workload],
    record: Mapping[str, Any],
    budgets: Sequence[Budget],
    out: Path,
    config: RunConfig,
    progress: Progress,
) -> None:
    """Make and measure the plans of each checkpoint, and write `mixed.json` with its page after each."""
    entries = {entry["key"]: entry for entry in record["checkpoints"]}
    found = {"format": mixed.FORMAT, "settings": record["settings"], "git": git_state(), "checkpoints": []}
    for work in works:
        entry = entries.get(_key(work, record["settings"]))
        if entry is None:  # nothing of it could be measured, which is among the problems
            continue
        with Session.opened(work, **session_options(config)) as session:
            own = mixed.measured(work, session, entry, budgets, out, progress)
        found["checkpoints"].append({"key": entry["key"], **_about(work.checkpoint), **own})
        mixed_page.write(out, found)


def session_options(config: RunConfig, remedy: str = _LESS_MEMORY) -> dict[str, Any]:
    """Options of a session whose model stays in memory; remedy: what to do where it does not fit."""
    options: dict[str, Any] = {"device": config.resolve_device(), "memory": config.memory}
    return options | {"trust_remote_code": config.trust_remote_code, "offload": False, "remedy": remedy}


def _about(checkpoint: Checkpoint) -> dict[str, Any]:
    return {name: getattr(checkpoint, name) for name in ("run", "step", "tokens", "params", "weights_sha")}


def _made(
    variants: Sequence[Variant], trials: Sequence[Trial], failed: list[dict[str, Any]]
) -> list[tuple[Trial, Variant]]:
    """The trials with their variants; those that have none are added to `failed` with the reason."""
    failed += [{**mixed.head(trial), "reason": one.failure} for trial, one in zip(trials, variants) if one.failure]
    return [(trial, variant) for trial, variant in zip(trials, variants) if not variant.failure]


def _label(
    trial: Trial, variant: Variant, own: Sequence[Mapping[str, Any]], rows: list[Any], skipped: list[Any]
) -> None:
    """Add a variant's rows, and its layers in full precision, each with what it was quantized by."""
    head = mixed.head(trial)
    rows += [{"key": trial.key(), **head, "group_size": variant.scheme.group_size, **row} for row in own]
    reasons = {
        **variant.skipped,
        **dict.fromkeys(variant.facts.get("rounded_to_nearest", ()), "was rounded to nearest"),
    }
    skipped += [{**head, "layer": name, "reason": why} for name, why in reasons.items()]


def ticker(progress: Progress, what: str, total: float) -> Callable[[float], None]:
    """A function that adds an amount of work to what is done, and says so to `progress`."""
    done = 0.0

    def tick(amount: float) -> None:
        nonlocal done
        done += amount
        progress(what, done, total)

    tick(0)
    return tick
