"""Checkpoints as rows of a table, and their problems as errors with an exit code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ptq_eval import errors
from ptq_eval.records import Checkpoint, Problem

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
    "missing_tokenizer": (
        errors.MissingTokenizerError,
        "put its files into the checkpoint's or the run's folder",
    ),
    "unsupported_model": (errors.UnsupportedModelError, "a model that AutoModelForCausalLM loads"),
    "not_a_model": (errors.UnsupportedModelError, "convert it, or exclude the step"),
    "already_quantized": (errors.UnsupportedModelError, "measure the checkpoint that it was quantized from"),
    "identical_weights": (errors.TrajectoryFileError, "exclude one of the two steps in trajectory.yaml"),
    "steps_out_of_order": (
        errors.TrajectoryFileError,
        "give the tokens in trajectory.yaml, or exclude the step",
    ),
    "step_disagrees": (errors.TrajectoryFileError, "rename the folder, or exclude the step"),
    "tokenizer_differs": (
        errors.TrajectoryFileError,
        "losses under two tokenizers do not compare: split the run",
    ),
    "model_differs": (
        errors.TrajectoryFileError,
        "one run is one model: put the other into a folder of its own",
    ),
    "tokens_unknown": (errors.TrajectoryFileError, "--tokens-per-step, --tokens or a trajectory.yaml"),
    "unreadable_state": (errors.TrajectoryFileError, "--tokens-per-step, --tokens or a trajectory.yaml"),
}


_ABOUT_TOKENS = ("tokens_unknown", "counter_restart", "stage_restart", "model_beside")
"""Problems that change what a curve over D means."""


def warnings(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """A line for every doubt about a checkpoint's place on the axis of tokens."""
    return [
        f"{checkpoint.name}: {problem.message}"
        for checkpoint in checkpoints
        for problem in checkpoint.problems
        if problem.code in _ABOUT_TOKENS
    ]


def error_for(checkpoint: Checkpoint, problem: Problem) -> errors.PtqEvalError:
    """The error, with its exit code, for a checkpoint's problem: returned, not raised."""
    cls, remedy = _ERRORS.get(problem.code, (errors.PtqEvalError, ""))
    return cls(f"{checkpoint.name}: {problem.message}", remedy="" if "remedy:" in problem.message else remedy)


def inspection_rows(checkpoints: Sequence[Checkpoint]) -> list[dict[str, Any]]:
    """One row per checkpoint: plain values, None where unknown; in `problems` a "!" marks the fatal ones.

    `fatal`: whether there is one, so that the checkpoint is excluded from every fit.
    """
    return [
        {
            "run": checkpoint.run,
            "step": checkpoint.step,
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
                f"{'!' if problem.fatal else ''}{problem.code}: {problem.message}" for problem in checkpoint.problems
            ),
            "fatal": any(problem.fatal for problem in checkpoint.problems),
        }
        for checkpoint in checkpoints
    ]
