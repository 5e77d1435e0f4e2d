"""What is settled once all weights are known: whether a model in a run's folder is a new one; D, asked for once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from ptq_eval.records import Checkpoint, Problem

ROOT = "."
"""The revision of a model that is in the folder of its run itself."""


def settled(verified: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints without a model in the run's folder that repeats one of them, which gets a note; and with the
    question for D at the first checkpoint that it concerns, for all of them."""
    found = list(verified)
    for model in [checkpoint for checkpoint in found if checkpoint.revision == ROOT]:
        message = ""
        others = [c for c in found if c.run == model.run and c is not model]
        twin = next((c for c in others if c.weights_sha and c.weights_sha == model.weights_sha), None)
        if twin is not None:
            message = "the model in the run's folder has the same weights as this checkpoint and is measured once"
        elif model.step is not None and (twin := next((c for c in others if c.step == model.step), None)):
            message = (
                "the model in the run's folder has other weights than this checkpoint, although its trainer_state.json "
                "says the same step (it may be the best checkpoint, loaded at the end); it is not measured"
            )
        if twin is not None:
            found[found.index(twin)] = twin.with_problem("model_beside", message)
            found.remove(model)
    return _asked_once(found)


def _asked_once(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    asked: dict[tuple[str, str], list[int]] = defaultdict(list)
    settled = list(checkpoints)
    for index, checkpoint in enumerate(checkpoints):
        problems = tuple(problem for problem in checkpoint.problems if problem.code != "tokens_unknown")
        if problems != checkpoint.problems:
            asked[checkpoint.run, checkpoint.tokens_note].append(index)
            settled[index] = replace(checkpoint, problems=problems)
    for (_, note), places in asked.items():
        whose = f"{len(places)} checkpoints of this run, which are" if len(places) > 1 else "this checkpoint, which is"
        problem = Problem("tokens_unknown", f"D is not known for {whose} measured but not fitted: {note}")
        first = settled[places[0]]
        settled[places[0]] = replace(first, problems=(*first.problems, problem))
    return settled
