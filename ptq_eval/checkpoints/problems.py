"""Problems of checkpoints, each as a warning, an error or a table's cell.

What is wrong with one checkpoint alone is found by `verify`, and what is wrong between several by `between`.  `settled`
then decides whether a model in a run's folder is one more checkpoint, and asks for D once per run.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from ptq_eval import errors
from ptq_eval.records import Checkpoint, Problem


def noted(
    checkpoint: Checkpoint, code: str, what: str | errors.PtqEvalError, *, fatal: bool = True, remedy: str = ""
) -> Checkpoint:
    """With one more problem, but never the same one twice.  `what` may be an error, which has a remedy of its own."""
    if isinstance(what, errors.PtqEvalError):
        what, remedy = what.fault, what.remedy
    with_it = checkpoint.with_problem(code, what, fatal=fatal, remedy=remedy)
    return checkpoint if with_it.problems[-1] in checkpoint.problems else with_it


ROOT = "."
"""The revision of a model in the folder of its run itself; one in `final` beside the checkpoints is `./final`."""


def beside(checkpoint: Checkpoint) -> bool:
    """Whether this is a model beside the numbered checkpoints of its run."""
    return checkpoint.revision == ROOT or checkpoint.revision.startswith(f"{ROOT}/")


def settled(verified: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints without a model beside them that repeats one of them, which gets a note; and with the
    question for D at the first checkpoint that it concerns, for all of them."""
    found = list(verified)
    for location in [checkpoint.location for checkpoint in found if beside(checkpoint)]:
        model = next(c for c in found if c.location == location)
        what = "the model in " + (
            "the run's folder" if model.revision == ROOT else model.revision.removeprefix(f"{ROOT}/")
        )
        message = ""
        others = [c for c in found if c.run == model.run and c is not model]
        twin = next((c for c in others if c.weights_sha and c.weights_sha == model.weights_sha), None)
        if twin is not None:
            message = f"{what} has the same weights as this checkpoint and is measured once"
        elif model.step is not None and (twin := next((c for c in others if c.step == model.step), None)):
            message = (
                f"{what} has other weights than this checkpoint, although its trainer_state.json "
                "says the same step (it may be the best checkpoint, loaded at the end); it is not measured"
            )
        if twin is not None:
            found[found.index(twin)] = twin.with_problem("model_beside", message)
            found.remove(model)
    return _asked_once(found)


def _asked_once(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """With the question for D of those that will be measured, at the first that it concerns; asked anew each time."""
    asked: dict[tuple[str, str, bool, str], list[int]] = defaultdict(list)
    settled = []
    for index, checkpoint in enumerate(checkpoints):
        if checkpoint.tokens is None and not checkpoint.fatal:
            asked[checkpoint.run, checkpoint.stage, checkpoint.step is None, checkpoint.tokens_note].append(index)
        others = tuple(problem for problem in checkpoint.problems if problem.code != "tokens_unknown")
        settled.append(replace(checkpoint, problems=others))
    for places in asked.values():
        note = checkpoints[places[0]].tokens_note
        whose = f"{len(places)} checkpoints of this run, which are" if len(places) > 1 else "this checkpoint, which is"
        message = f"D is not known for {whose} measured but not fitted: {note}"
        settled[places[0]] = settled[places[0]].with_problem("tokens_unknown", message)
    return settled


# From the gravest on: the files, then the model, then its place among the others.
_ERRORS: dict[str, tuple[type[errors.PtqEvalError], str]] = {
    "unreadable": (
        errors.UnreadableCheckpointError,
        "fetch or save the checkpoint again, or exclude its step",
    ),
    "missing_shard": (errors.UnreadableCheckpointError, "fetch the missing files, or exclude the step"),
    "config_missing": (errors.UnreadableCheckpointError, "put the model's config.json beside the weights"),
    "not_loaded": (errors.UnreadableCheckpointError, "the config.json must belong to these weights"),
    "unsafe_pickle": (errors.UnsafeCheckpointError, "convert it to safetensors where you trust it"),
    "remote_code": (errors.UnsafeCheckpointError, "--trust-remote-code, if you trust its author"),
    "nan_or_inf": (
        errors.NonFiniteWeightsError,
        "exclude the step: the training had diverged, or the file is bad",
    ),
    "huge_weights": (
        errors.NonFiniteWeightsError,
        "fetch or convert the checkpoint again (wrong scales, another type of number), or exclude the step",
    ),
    "missing_tokenizer": (
        errors.MissingTokenizerError,
        "put its files into the checkpoint's or the run's folder",
    ),
    "unsupported_model": (errors.UnsupportedModelError, "a model that AutoModelForCausalLM loads"),
    "not_a_model": (errors.UnsupportedModelError, "convert it, or exclude the step"),
    "constant_weights": (errors.NonFiniteWeightsError, "fetch or save the checkpoint again, or exclude the step"),
    "already_quantized": (errors.UnsupportedModelError, "measure the checkpoint that it was quantized from"),
    "identical_weights": (errors.TrajectoryFileError, "exclude one of the two steps in trajectory.yaml"),
    "tokenizer_differs": (
        errors.TrajectoryFileError,
        "losses under two tokenizers do not compare: split the run",
    ),
    "model_differs": (
        errors.TrajectoryFileError,
        "one run is one model: put the other into a folder of its own",
    ),
    "steps_out_of_order": (
        errors.TrajectoryFileError,
        "give a D that grows with the step (--tokens, --tokens-per-step or trajectory.yaml), or exclude the step",
    ),
    "not_pretraining": (errors.OtherStageError, "give a folder of pretraining"),
    "step_disagrees": (errors.TrajectoryFileError, "rename the folder, or exclude the step"),
    "tokens_unknown": (errors.TrajectoryFileError, "--tokens-per-step, --tokens or a trajectory.yaml"),
    "unreadable_state": (errors.TrajectoryFileError, "--tokens-per-step, --tokens or a trajectory.yaml"),
}


_WARNED = (
    "tokens_unknown", "counter_restart", "counter_unit", "count_ignored",
    "tokens_off_line", "tokens_per_step_unused", "stage_restart",
    "model_beside", "adapter_beside", "large_weights", "branch",
    "untied_head", "class_differs", "coarse_weights", "recipe_unused",
)  # fmt: skip
"""Problems that are not fatal and change what a curve over D means."""


def warnings(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """A line for every doubt about a checkpoint's place on the axis of tokens, or about what was measured."""
    return [
        f"{checkpoint.name}: {problem.message}"
        for checkpoint in _asked_once(checkpoints)
        for problem in checkpoint.problems
        if problem.code in _WARNED
    ]


def error_for(checkpoint: Checkpoint, problem: Problem) -> errors.PtqEvalError:
    """The error, with its exit code, for a checkpoint's problem: returned, not raised."""
    cls, remedy = _ERRORS.get(problem.code, (errors.PtqEvalError, ""))
    return cls(f"{checkpoint.name}: {problem.message}", remedy=problem.remedy or remedy)


def gravest(checkpoint: Checkpoint) -> errors.PtqEvalError:
    """The error for the gravest of a checkpoint's fatal problems; it must have at least one."""
    codes = list(_ERRORS)
    rank = lambda problem: codes.index(problem.code) if problem.code in codes else -1
    return error_for(checkpoint, min(checkpoint.fatal, key=rank))


def foremost(found: Sequence[errors.PtqEvalError], listed: str) -> errors.PtqEvalError:
    """The error to end with where there are several: of the kind that most are of, and of the gravest such kind.

    It says how many others there are; `listed` says where these are listed.
    """
    kinds = list(dict.fromkeys(cls for cls, _ in _ERRORS.values()))
    count = Counter(type(error) for error in found)
    rank = lambda error: kinds.index(type(error)) if type(error) in kinds else -1
    first = min(found, key=lambda error: (-count[type(error)], rank(error)))
    return type(first)(f"{first} | and {len(found) - 1} more, {listed}") if len(found) > 1 else first


def faults(found: Iterable[errors.PtqEvalError], *, sound: bool) -> list[errors.PtqEvalError]:
    """Those of the errors that a command ends with.

    That checkpoints of a later stage are excluded is no fault where there are `sound` ones beside them.
    """
    return [error for error in found if not (sound and isinstance(error, errors.OtherStageError))]


def inspection_rows(checkpoints: Sequence[Checkpoint]) -> list[dict[str, Any]]:
    """One row per checkpoint: plain values, None where unknown; in `problems` a "!" marks the fatal ones.

    `fatal`: whether there is one, so that the checkpoint is excluded from every fit.
    """
    return [
        {
            "run": checkpoint.run,
            "step": checkpoint.step,
            "revision": checkpoint.revision,
            "tokens": checkpoint.tokens,
            "tokens_source": checkpoint.tokens_source,
            "tokens_note": checkpoint.tokens_note,
            "params": checkpoint.params,
            "tokens_per_param": checkpoint.tokens_per_param,
            "format": checkpoint.format,
            "learning_rate": checkpoint.learning_rate,
            "schedule_phase": checkpoint.schedule_phase,
            "stage": checkpoint.stage,
            "weights_sha": checkpoint.weights_sha[:12],
            "problems": "; ".join(
                f"{'!' if problem.fatal else ''}{problem.code}: {problem}" for problem in checkpoint.problems
            ),
            "fatal": any(problem.fatal for problem in checkpoint.problems),
        }
        for checkpoint in checkpoints
    ]
