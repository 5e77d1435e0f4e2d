"""What is wrong between checkpoints: near-identical weights, another tokenizer or size, steps out of order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from ptq_eval.checkpoints.sketch import Sketch
from ptq_eval.records import Checkpoint

NEAR = 0.01
"""Relative distance below which two checkpoints' weights are called near-identical."""


def noted(checkpoint: Checkpoint, code: str, message: str, *, fatal: bool = True) -> Checkpoint:
    """With one more problem, but never the same one twice."""
    with_it = checkpoint.with_problem(code, message, fatal=fatal)
    return checkpoint if with_it.problems[-1] in checkpoint.problems else with_it


def compared(
    checkpoints: Sequence[Checkpoint],
    sketches: Sequence[Sketch | None],
    same_tokenizer: Callable[[Checkpoint, Checkpoint], bool],
) -> list[Checkpoint]:
    """The verified checkpoints of all runs, in the same order, with what is wrong between them.

    `sketches` are those of their weights, None where they could not be read.  Checkpoints whose tokenizers differ in
    form only get the hash of the first.
    """
    found = _one_hash_per_tokenizer(checkpoints, same_tokenizer)
    runs: dict[str, list[int]] = defaultdict(list)
    for index, checkpoint in enumerate(found):
        runs[checkpoint.run].append(index)
    for indices in runs.values():
        for index, checkpoint in zip(indices, _in_order([found[index] for index in indices])):
            found[index] = checkpoint
    return _with_near(found, sketches)


def _one_hash_per_tokenizer(
    checkpoints: Sequence[Checkpoint], same: Callable[[Checkpoint, Checkpoint], bool]
) -> list[Checkpoint]:
    first: dict[str, Checkpoint] = {}
    names: dict[str, str] = {"": ""}
    for checkpoint in checkpoints:
        sha = checkpoint.tokenizer_sha
        if sha not in names:
            twin = next((other for other in first.values() if same(other, checkpoint)), checkpoint)
            names[sha] = twin.tokenizer_sha
            first.setdefault(twin.tokenizer_sha, twin)
    return [replace(c, tokenizer_sha=names[c.tokenizer_sha]) for c in checkpoints]


def _in_order(run: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints of one run, in order, with what is wrong between them."""
    done: list[Checkpoint] = []
    for checkpoint in run:
        earlier = list(done)
        checkpoint = _against_first(checkpoint, earlier)
        checkpoint = _against_order(checkpoint, earlier)
        if checkpoint.tokens is None:
            message = f"D is not known, so this is measured but not fitted: {checkpoint.tokens_note}"
            checkpoint = noted(checkpoint, "tokens_unknown", message, fatal=False)
        done.append(checkpoint)
    return done


def _against_first(checkpoint: Checkpoint, earlier: Sequence[Checkpoint]) -> Checkpoint:
    twin = next((e for e in earlier if checkpoint.weights_sha and e.weights_sha == checkpoint.weights_sha), None)
    if twin:
        checkpoint = noted(checkpoint, "identical_weights", f"the same weights as {twin.name}")
    for attribute, code, what in (
        ("tokenizer_sha", "tokenizer_differs", "the tokenizer"),
        ("params_total", "model_differs", "the number of parameters"),
    ):
        mine = getattr(checkpoint, attribute)
        first = next((e for e in earlier if getattr(e, attribute)), None)
        if mine and first and getattr(first, attribute) != mine:
            checkpoint = noted(checkpoint, code, f"{what} differs from that of {first.name}")
    return checkpoint


def _against_order(checkpoint: Checkpoint, earlier: Sequence[Checkpoint]) -> Checkpoint:
    """D must grow with the step, within a stage: later stages may branch from an earlier point."""
    same = [e for e in earlier if e.stage == checkpoint.stage and e.step is not None and e.tokens is not None]
    if checkpoint.step is not None and checkpoint.tokens is not None and same:
        last = max(same, key=lambda e: e.tokens or 0)
        if checkpoint.tokens <= (last.tokens or 0):
            message = f"D = {checkpoint.tokens:,} is not above the {last.tokens:,} of {last.name}"
            checkpoint = noted(checkpoint, "steps_out_of_order", message)
    restarted = (
        checkpoint.stage
        and earlier
        and any(e.stage != checkpoint.stage and (e.step or 0) > (checkpoint.step or 0) for e in earlier)
    )
    if restarted:
        message = f"{checkpoint.stage} counts its steps from 0 again ({checkpoint.tokens_note})"
        checkpoint = noted(checkpoint, "stage_restart", message, fatal=False)
    return checkpoint


def _with_near(checkpoints: Sequence[Checkpoint], sketches: Sequence[Sketch | None]) -> list[Checkpoint]:
    """Each checkpoint with the nearest earlier one, of any run, where their weights are near-identical."""
    found: list[Checkpoint] = []
    for index, checkpoint in enumerate(checkpoints):
        mine = sketches[index]
        twins = {problem.code for problem in checkpoint.problems} & {"identical_weights"}
        if mine is not None and not twins:
            pairs = ((mine.distance(other), place) for place, other in enumerate(sketches[:index]) if other is not None)
            near = min(((far, place) for far, place in pairs if far is not None and far < NEAR), default=None)
            if near is not None:
                other = checkpoints[near[1]]
                message = f"nearly the weights of {other.name}: relative distance {near[0]:.2g}, under {NEAR:g}"
                if other.run != checkpoint.run:
                    message += "; two runs that share weights are not independent"
                checkpoint = noted(checkpoint, "near_identical", message, fatal=False)
        found.append(checkpoint)
    return found
