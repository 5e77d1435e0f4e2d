"""From checkpoints to a record of what theory predicts and what is measured, one entry per checkpoint.

    discover → choose → verify → plan → (quantize, gradients, slope, one layer at a time) → sensitivity.json

The record is written anew after each checkpoint, and an entry is found again by its weights and by everything that
changes its numbers, so a job that was stopped goes on where it was.  Gradients are taken on the calibration text,
damage is measured on the evaluation text, both in float32: a second-order expansion lives in digits that shorter types
lack.

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
from ptq_eval.config import RunConfig
from ptq_eval.errors import DeviceError, OptionError, PtqEvalError
from ptq_eval.measure.calibration import Lane, quantize
from ptq_eval.measure.memory import Budget, out_of_memory
from ptq_eval.measure.sweep import provenance
from ptq_eval.measure.texts import Texts, describe_windows
from ptq_eval.measure.trials import Workload, make_plan, quantizers_of
from ptq_eval.models.language_model import LanguageModel
from ptq_eval.records import Checkpoint, Trial
from ptq_eval.report.sensitivity import page as report
from ptq_eval.results.manifest import git_state
from ptq_eval.theory.sensitivity import rows
from ptq_eval.theory.summary import agreements, bounds
from quantizers import Scheme, get_quantizer

FORMAT = 1
"""Raised whenever the numbers of a record change their meaning."""

_NEUTRAL = ("bootstrap", "shard", "device", "memory", "trust_remote_code", "bos")
"""Options that change no number here, and `bos`, which is recorded only if set."""

Progress = Callable[[str, float, float], None]


def sensitivity(
    folders: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    steps: str = "all",
    draws: int = 2,
    overrides: Overrides | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[dict[str, Any], list[PtqEvalError]]:
    """Damage per layer, measured and predicted, of checkpoints under `folders`; written below `out`.

    `steps`: "all", or steps and the words first and last, separated by commas.  `draws` are labels drawn per window
    for the Fisher information.  `options` are those of `ptq_eval.config.RunConfig` (quantizers: rtn unless given).
    Returns the content of `sensitivity.json`, and the errors of checkpoints that were set aside.  Raises PtqEvalError
    subclasses.
    """
    config = _config(options, draws)
    progress = progress or (lambda what, done, total: None)
    roots = [folders] if isinstance(folders, (str, Path)) else list(folders)
    found = chosen(discover(roots, overrides=overrides), steps)
    checkpoints = verify_all(
        found,
        progress=lambda done, total, _name: progress("reading weights", done, total),
        trust_remote_code=config.trust_remote_code,
    )
    plan = make_plan(checkpoints, config)
    if not plan.workloads:
        raise plan.excluded[0][1]
    record = _header(config, draws)
    old = report.read(Path(out))
    if old is not None and old.get("settings") == record["settings"]:
        record["checkpoints"] = old["checkpoints"]
    texts = Texts(config)
    for work in plan.workloads:
        key = _key(work, record["settings"])
        if key in [entry["key"] for entry in record["checkpoints"]]:
            continue
        entry = {"key": key, **_entry(work, texts, config, draws, progress)}
        record["checkpoints"].append(entry)
        record["checkpoints"].sort(key=lambda e: (e["run"], e["tokens"] or 0, e["step"] or 0))
        report.write_record(Path(out), record)
    report.write(Path(out), record)
    return record, [error for _, error in plan.excluded]


def _config(options: Mapping[str, Any], draws: int) -> RunConfig:
    if draws < 1:
        raise OptionError("--draws is too small", got=draws, allowed="at least 1")
    config = RunConfig.of({"quantizers": ("rtn",), **options})
    if config.dtype != "float32":
        raise OptionError("sensitivities need float32", got=config.dtype, remedy="leave --dtype out")
    if config.shard != (1, 1):
        raise OptionError("sensitivities are not sharded", got=config.shard, remedy="choose --steps for each process")
    if config.precision is not None:
        raise OptionError("sensitivities take every window", got=f"precision={config.precision}", remedy="leave it out")
    quantizers_of(config)
    config.resolve_device()
    return config


def chosen(checkpoints: Sequence[Checkpoint], steps: str) -> list[Checkpoint]:
    """Those that `steps` names, of every run: "all", or steps and the words first and last.  Raises OptionError."""
    words = [word.strip() for word in steps.split(",") if word.strip()]
    by_run: dict[str, list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        by_run.setdefault(checkpoint.run, []).append(checkpoint)
    kept = [
        checkpoint
        for own in by_run.values()
        for place, checkpoint in enumerate(own)
        if "all" in words
        or str(checkpoint.step) in words
        or ("first" in words and place == 0)
        or ("last" in words and place == len(own) - 1)
    ]
    known = {"all", "first", "last", *(str(checkpoint.step) for checkpoint in checkpoints)}
    unknown = [word for word in words if word not in known]
    if unknown or not kept:
        there = ", ".join(str(checkpoint.step) for checkpoint in checkpoints[:12])
        raise OptionError(
            "--steps names no checkpoint", got=", ".join(unknown) or repr(steps), allowed=f"all, first, last, {there}"
        )
    return kept


def _header(config: RunConfig, draws: int) -> dict[str, Any]:
    settings = {
        **{name: value for name, value in config.to_dict().items() if name not in _NEUTRAL},
        **({"bos": True} if config.bos else {}),  # only if set, so that records made before it existed stay valid
        "device": config.resolve_device().split(":")[0],
        "draws": draws,
        "versions": {name: get_quantizer(name).version for name in config.quantizers},
    }
    return {"format": FORMAT, "settings": json.loads(json.dumps(settings)), "git": git_state(), "checkpoints": []}


def _key(work: Workload, settings: Mapping[str, Any]) -> str:
    checkpoint = work.checkpoint
    place = [checkpoint.run, checkpoint.step, checkpoint.revision, checkpoint.weights_sha, work.evaluation.digest]
    text = json.dumps([FORMAT, place, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _entry(work: Workload, texts: Texts, config: RunConfig, draws: int, progress: Progress) -> dict[str, Any]:
    """One checkpoint, loaded, measured and predicted."""
    started, device = time.time(), config.resolve_device()
    checkpoint, trust = work.checkpoint, config.trust_remote_code
    model = LanguageModel.load(
        work.folder, device=device, include_head=config.include_head, trust_remote_code=trust, name=checkpoint.name
    )
    cut = texts.cut("calibration", checkpoint, work.folder, model.vocab_size, work.evaluation.seq_len)
    evaluation, calibration = torch.tensor(work.evaluation.ids), torch.tensor(cut.ids)
    trials = work.trials[1:]
    groups = _together(model, trials, Budget.of(device, config.memory_bytes()))
    passes = len(groups) * (len(calibration) + 2 * len(evaluation))
    total = passes + len(evaluation) * len(trials) * (len(model.linears()) + 1)
    done = 0.0

    def tick(amount: float) -> None:
        nonlocal done
        done += amount
        progress(f"sensitivities of {checkpoint.name}", done, total)

    tick(0)
    labelled, skipped = [], []
    try:
        for group in groups:
            lanes = _lanes(model, group, calibration)
            found = rows(model, evaluation, calibration, lanes, draws=draws, seed=config.seed, tick=tick)
            for trial, lane, own in zip(group, lanes, found):
                head = {"quantizer": trial.quantizer, "bits": trial.bits}
                labelled += [{**head, "group_size": lane.scheme.group_size, **row} for row in own]
                skipped += [{**head, "layer": name, "reason": why} for name, why in lane.skipped.items()]
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not out_of_memory(error):
            raise
        raise DeviceError(
            f"{checkpoint.name}: out of memory on {device}",
            got=(str(error).splitlines() or [""])[0][:160],
            remedy="a shorter --seq-len, or a device with more memory",
        ) from error
    return {
        "run": checkpoint.run,
        "step": checkpoint.step,
        "tokens": checkpoint.tokens,
        "params": checkpoint.params,
        "weights_sha": checkpoint.weights_sha,
        "rows": labelled,
        "agreement": agreements(labelled),
        "bounds": bounds(labelled),
        "skipped": skipped,
        "texts": {"evaluation": describe_windows(work.evaluation), "calibration": describe_windows(cut)},
        "provenance": {**provenance(device), "seconds": time.time() - started},
    }


def _together(model: LanguageModel, trials: Sequence[Trial], budget: Budget) -> list[list[Trial]]:
    """Trials whose lanes are held at the same time; how many fit changes the time taken and no result.

    A lane is its weights, their errors and the variances that are expected; beside them lie the model and as much again
    for gradients.
    """
    weights = sum(4 * model.weight(name).numel() for name in model.linears())
    whole = sum(parameter.nbytes for parameter in model.module.parameters())
    size = budget.lanes(whole + 2 * weights, 3 * weights)
    return [list(trials[place : place + size]) for place in range(0, len(trials), size)]


def _lanes(model: LanguageModel, trials: Sequence[Trial], calibration: torch.Tensor) -> list[Lane]:
    """The trials quantized, in their order."""
    lanes = []
    for trial in trials:
        assert trial.scheme is not None
        scheme = Scheme(trial.scheme.bits, trial.scheme.group_size, trial.scheme.symmetric, trial.scheme.format)
        lanes.append(Lane(get_quantizer(trial.quantizer, **trial.options), scheme))
    for sequential in (False, True):
        alike = [lane for lane, trial in zip(lanes, trials) if (trial.calibration == "sequential") is sequential]
        if alike:
            quantize(model, alike, calibration.to(model.device), sequential=sequential)
    return lanes
