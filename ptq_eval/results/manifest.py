"""`run.json`: the options, checkpoints, texts and versions of a run; whether two runs may share an output folder."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ptq_eval import plugins
from ptq_eval.errors import OutputMismatchError
from ptq_eval.records import Checkpoint, Measurement, Trial
from ptq_eval.results.selection import conditions

if TYPE_CHECKING:
    from ptq_eval.config.run import RunConfig
    from ptq_eval.measure.trials import Plan


Position: TypeAlias = tuple[Any, ...]
"""Run, step and name of a checkpoint."""
_PACKAGES = ("ptq-eval", "torch", "numba", "triton", "transformers", "tokenizers", "accelerate", "datasets")
_PACKAGES += ("safetensors", "numpy", "scipy", "pandas", "matplotlib")
"""Packages that may change a number; those installed are recorded."""


def describe(config: RunConfig, checkpoints: Sequence[Checkpoint], plan: Plan, started: float) -> dict[str, Any]:
    """The content of `run.json`: options, versions, digests, git state, machine, models and texts."""
    digests = {run: {role: text["digest"] for role, text in texts.items()} for run, texts in plan.texts.items()}
    return {
        "format": 1,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "options": config.to_dict(),
        "fixed": _with_length({**config.fixed(), "device": config.resolve_device().split(":")[0], **_resolved(plan)}),
        "quantizer_options": {name: dict(config.options.get(name, {})) for name in config.quantizers},
        "digests": digests,
        "texts": plan.texts,
        "overlap": plan.overlaps,
        "models": plan.models,
        "checkpoints": [entry_of(checkpoint) for checkpoint in checkpoints],
        "notes": plan.notes,
        "warnings": plan.warnings,
        "versions": {"python": platform.python_version(), **plugins.versions(*_PACKAGES)},
        "plugins": {name: plugins.provider("quantizers", name) for name in config.quantizers},
        "git": git_state(),
        "machine": {
            "host": socket.gethostname(),
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
        },
    }


def entry_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint as `run.json` lists it."""
    return replace(checkpoint, location=_relative(checkpoint.location)).to_dict()


def _resolved(plan: Plan) -> dict[str, Any]:
    """The group size and window length that automatic choices resolved to; the same for all runs of a plan."""
    models = iter(plan.models.values())
    return {name: model[name] for model in [next(models, {})] for name in ("group_size", "seq_len") if name in model}


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """Commit of the git checkout that this package runs from, and whether it is unchanged; None outside of one."""
    where = folder or Path(__file__).resolve().parent
    try:
        commit, status = (
            subprocess.run(["git", *args], cwd=where, capture_output=True, text=True, timeout=10, check=True).stdout
            for args in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "clean": not status.strip()}


def _relative(location: str) -> str:
    """A path relative to the working directory, if it is inside it."""
    try:
        return str(Path(os.path.abspath(location)).relative_to(Path.cwd()))
    except ValueError:
        return location


def require_same(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    folder: Path,
    *,
    growing: bool = False,
    waiting: Collection[Checkpoint] = (),
) -> None:
    """Refuse to mix in one folder another trajectory, another text, or options that change what numbers mean.

    A grid may grow: further quantizers, bits, checkpoints and runs are accepted.  growing: the runs are still training,
    so all their earlier checkpoints may be gone.  waiting: further checkpoints of the trajectory, which are not in
    `new`.  Raises OutputMismatchError.
    """
    before, now = _with_length(_with_samples(old.get("fixed", {}))), _plain(new["fixed"])
    for name in now:
        _same(folder, "other options", _flag(name, now[name]), _flag(name, before.get(name)))
    for name, options in _plain(new["quantizer_options"]).items():
        _same(
            folder,
            "other options",
            f"{name} {options}",
            f"{name} {old['quantizer_options'].get(name, options)}",
        )
    for run, digests in new["digests"].items():
        for role, digest in digests.items():
            earlier = old["digests"].get(run, {}).get(role, digest)
            _same(
                folder,
                f"another {role} text",
                f"{run}: digest {digest[:12]}",
                f"{run}: digest {earlier[:12]}",
            )
    weights, mine = weights_of(old), weights_of(new)
    for checkpoint in new["checkpoints"]:
        require_same_weights(weights, checkpoint, folder)
    here = {*mine, *((c.run, c.step, c.revision) for c in waiting)}
    known = {run for run, *_ in weights} & {run for run, *_ in here} if growing else weights.keys() & here
    if weights and not known:
        runs = [", ".join(sorted({run for run, *_ in positions})) for positions in (mine, weights)]
        _same(
            folder,
            "another trajectory",
            f"runs {runs[0]}",
            f"runs {runs[1]}, none of whose checkpoints is here",
        )


def require_same_weights(stored: Mapping[Position, str], checkpoint: Mapping[str, Any], folder: Path) -> None:
    """Raises OutputMismatchError if a checkpoint was measured with other weights; an excluded one was not.

    stored: the weights' hashes of the checkpoints that were measured (`weights_of`).
    """
    if any(problem["fatal"] for problem in checkpoint["problems"]):
        return
    sha, name = checkpoint["weights_sha"], f"{checkpoint['run']} step {checkpoint['step']} with weights "
    measured = stored.get(_position(checkpoint)) or sha
    _same(folder, "another trajectory", name + sha[:12], name + measured[:12])


def _with_samples(fixed: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of a folder from before there were samples of windows: the first ones, or crops to calibrate on."""
    if not fixed or "eval_sample" in fixed:
        return fixed
    seed = fixed.get("calib_seed")
    drawn = {"calib_sample": "first" if seed is None else "crops", "calib_seed": seed or 0}
    return {**fixed, "eval_sample": "first", "eval_seed": 0, **drawn}


def _with_length(fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Options with the length of calibration windows, by default the length of evaluation windows."""
    return {**fixed, "calib_length": fixed.get("calib_length") or fixed.get("seq_len")}


def _flag(name: str, value: Any) -> str:
    """An option as written on the command line; None and False are an absent option, or its word for none."""
    flag = "--" + name.replace("_", "-")
    if value is True:
        return flag
    if value is None or value is False:
        words = {"group_size": "none", "eval_windows": "all"}
        return f"{flag} {words[name]}" if name in words else f"without {flag}"
    return f"{flag} {value}"


def require_matching(records: Iterable[Measurement], plan: Plan, folder: Path) -> None:
    """Refuse records that were measured under other options than the plan's; for folders without a `run.json`.

    Only the records themselves are compared.  Raises OutputMismatchError.
    """
    trials = [trial for work in plan.workloads for trial in work.trials]
    quantized = {_whose(t): _request(t) for t in trials if t.scheme is not None}
    draws = {t.calibration_corpus[:12] for t in trials}
    common = conditions(trials[0]) if trials else {}
    corpora = {t.checkpoint.run: t.corpus for t in trials}
    for record in records:
        trial = record.trial
        if record.status == "failed" or not trials:
            continue
        wanted = {**common, "corpus": corpora.get(trial.checkpoint.run, trial.corpus)}
        for name, value in conditions(trial).items():
            _same(folder, "other options", _condition(name, wanted[name]), _condition(name, value))
        mine = _request(trial)
        wanted = dict(quantized.get(_whose(trial), mine))
        if wanted["calibration_windows"] and mine["calibration_windows"] in draws - {""}:
            wanted["calibration_windows"] = mine["calibration_windows"]  # any of several draws
        for name, value in wanted.items():
            what = f"{trial.quantizer} {name.replace('_', ' ')}"
            _same(folder, "other options", f"{what} {value}", f"{what} {mine[name]}")


def _condition(name: str, value: Any) -> str:
    if name == "stop":
        return _flag("precision", value.get("precision"))
    return f"evaluation windows {value[:12]}" if name == "corpus" else f"{name.replace('_', ' ')} {value}"


def _whose(trial: Trial) -> tuple[str, ...]:
    return trial.checkpoint.run, trial.quantizer, trial.quantizer_version, trial.scheme.format if trial.scheme else ""


def _request(trial: Trial) -> dict[str, Any]:
    """Everything that a trial asks of its quantizer, except the bits."""
    asked = {"options": _plain(dict(trial.options)), "calibration": trial.calibration}
    asked["calibration_windows"] = trial.calibration_corpus[:12]
    if trial.scheme is not None:
        asked |= {"group_size": trial.scheme.group_size, "symmetric": trial.scheme.symmetric}
    return asked


def _same(folder: Path, what: str, got: str, stored: str) -> None:
    if got != stored:
        raise OutputMismatchError(
            f"the output folder {folder} holds results of {what}",
            got=got,
            allowed=stored,
            remedy="choose another -o, or repeat the command as it was",
        )


def weights_of(info: Mapping[str, Any]) -> dict[Position, str]:
    """The weights' hashes by position in the trajectory.  An excluded checkpoint has no results to contradict."""
    sound = (c for c in info.get("checkpoints", []) if not any(problem["fatal"] for problem in c["problems"]))
    return {_position(c): c["weights_sha"] for c in sound}


def _position(checkpoint: Mapping[str, Any]) -> Position:
    return checkpoint["run"], checkpoint["step"], checkpoint["revision"]


def merged(
    old: Mapping[str, Any], new: dict[str, Any], roots: Sequence[str | Path], waiting: Collection[Checkpoint] = ()
) -> dict[str, Any]:
    """`new` and what is only in `old`: checkpoints measured earlier, quantizers of earlier calls.

    A checkpoint that still exists below one of the `roots` but was not found this time has been excluded by the user
    and is dropped; one that was deleted after it was measured, or is somewhere else, is kept, and so is one that
    is only `waiting`: it is being written again, say.
    """
    known = {_position(c) for c in new["checkpoints"]}
    unknown = [c for c in old.get("checkpoints", []) if _position(c) not in known]
    found = {os.path.abspath(checkpoint.location) for checkpoint in waiting}
    earlier = [c for c in unknown if os.path.abspath(c["location"]) in found or not _is_below(c, roots)]
    every = [*new["checkpoints"], *earlier]
    both = {
        **new,
        "checkpoints": sorted(every, key=lambda c: (c["run"], c["stage"], c["step"] is None, c["step"] or 0)),
        "started": old.get("started", new["started"]),
    }
    for name in ("models", "overlap", "quantizer_options", "plugins"):
        both[name] = {**old.get(name, {}), **new[name]}
    for name in ("texts", "digests"):  # by run and role: a later call may use fewer calibrations
        earlier = old.get(name, {})
        both[name] = {**earlier, **{run: {**earlier.get(run, {}), **roles} for run, roles in new[name].items()}}
    return both


def _is_below(checkpoint: Mapping[str, Any], roots: Sequence[str | Path]) -> bool:
    folder = Path(os.path.abspath(checkpoint["location"]))
    return folder.exists() and any(Path(os.path.abspath(root)) in (folder, *folder.parents) for root in roots)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))
