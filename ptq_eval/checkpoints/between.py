"""What is wrong between checkpoints: near-identical weights, another tokenizer or size, steps out of order.

It shows once all weights are known.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from ptq_eval.checkpoints.growth import REMEDY, Reading, off_line
from ptq_eval.checkpoints.problems import noted
from ptq_eval.records import Checkpoint

if TYPE_CHECKING:
    from ptq_eval.checkpoints.weights import Sketch

NEAR = 0.01
"""Relative distance below which two checkpoints' weights are called near-identical."""


def cross_checked(
    checkpoints: Sequence[Checkpoint],
    sketches: Sequence[Sketch | None],
    same_tokenizer: Callable[[Checkpoint, Checkpoint], bool],
) -> list[Checkpoint]:
    """The verified checkpoints of all runs, in the same order, with what is wrong between them.

    `sketches` of their weights are None where these could not be read.  Checkpoints whose tokenizers differ in
    form only get the hash of the first.
    """
    found = _one_hash_per_tokenizer(checkpoints, same_tokenizer)
    runs: dict[str, list[int]] = defaultdict(list)
    for index, checkpoint in enumerate(found):
        runs[checkpoint.run].append(index)
    for indices in runs.values():
        for index, checkpoint in zip(indices, _in_order([found[index] for index in indices])):
            found[index] = checkpoint
    return _with_twins(found, sketches)


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


_SHARED = (
    ("tokenizer_sha", "tokenizer_differs", "the tokenizer"),
    ("params_total", "model_differs", "the number of parameters"),
)
"""What the checkpoints of a run have in common: the attribute, the code where one differs, and its name."""


def _in_order(run: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints of one run, in order, with what is wrong between them."""
    usual = {attribute: _usual(run, attribute) for attribute, _, _ in _SHARED}
    run = _against_order([_against_usual(checkpoint, usual) for checkpoint in run])
    return [_restarted(checkpoint, run[:index]) for index, checkpoint in enumerate(run)]


def _usual(run: Sequence[Checkpoint], attribute: str) -> Checkpoint | None:
    """The first checkpoint with the value that most of the run have, so that a wrong one does not exclude the others.

    Checkpoints that are excluded already do not count, unless all are; of two values as common, the earlier one.
    """
    known = [checkpoint for checkpoint in run if getattr(checkpoint, attribute)]
    known = [checkpoint for checkpoint in known if not checkpoint.fatal] or known
    counts = Counter(getattr(checkpoint, attribute) for checkpoint in known)
    return max(known, key=lambda checkpoint: counts[getattr(checkpoint, attribute)], default=None)


def _against_usual(checkpoint: Checkpoint, usual: Mapping[str, Checkpoint | None]) -> Checkpoint:
    for attribute, code, what in _SHARED:
        mine, other = getattr(checkpoint, attribute), usual[attribute]
        unfit = code == "model_differs" and any(problem.code == "not_loaded" for problem in checkpoint.problems)
        if mine and other and getattr(other, attribute) != mine and not unfit:  # N is of the wrong configuration
            checkpoint = noted(checkpoint, code, f"{what} differs from {other.name}'s")
    return checkpoint


def _against_order(run: Sequence[Checkpoint]) -> list[Checkpoint]:
    """D must grow with the step, within a stage: later stages may branch from an earlier point.

    As few checkpoints as possible are excluded, those whose D the other steps contradict first, then later ones.  Those
    that are excluded already do not count: their D may be as wrong as the rest of them.  A D that is contradicted but
    in order is noted, unless it is read off a label, whose rounding may explain it.
    """
    found = list(run)
    counted = [i for i, c in enumerate(run) if not c.fatal and c.step is not None and c.tokens is not None]
    for stage in {run[i].stage for i in counted}:
        places = [i for i in counted if run[i].stage == stage]
        implied = _implied(run, places)
        sound = [i for i in places if i not in implied]
        kept = {sound[i] for i in _longest_rise([run[i].tokens or 0 for i in sound])}
        for i in set(places) - kept:
            mine = run[i].tokens or 0
            above = [run[k] for k in kept if k < i and (run[k].tokens or 0) >= mine]
            below = [run[k] for k in kept if k > i and (run[k].tokens or 0) <= mine]
            if above or below:
                message = f"D = {mine:,} is not {'above' if above else 'below'} "
                message += f"the {(above or below)[0].tokens:,} of {(above or below)[0].name}"
                found[i] = noted(run[i], "steps_out_of_order", message + ("" if above else ", which comes later"))
            elif run[i].tokens_source != "label":
                message = f"D = {mine:,}, but the other steps of the run imply {implied[i]:,}: {REMEDY}"
                found[i] = noted(run[i], "tokens_off_line", message, fatal=False)
    return found


def _implied(run: Sequence[Checkpoint], places: Sequence[int]) -> dict[int, int]:
    """{place: the D that other steps imply} of the checkpoints at `places` whose D is far from it."""
    places = [i for i in places if run[i].step]
    readings = [Reading(run[i].step or 0, run[i].tokens or 0) for i in places]
    if any(later.step <= earlier.step for earlier, later in pairwise(readings)):
        return {}
    return {places[at]: tokens for at, tokens in off_line(readings).items()}


def _longest_rise(numbers: Sequence[int]) -> list[int]:
    """The places of the longest rising subsequence; of several, the one of earlier places."""
    chains: list[list[int]] = []  # the longest from each place on, the last place first
    for place in range(len(numbers) - 1, -1, -1):
        after = (chain for chain in reversed(chains) if numbers[chain[0]] > numbers[place])
        chains.append([place, *max(after, key=len, default=[])])
    return max(reversed(chains), key=len, default=[])


def _restarted(checkpoint: Checkpoint, earlier: Sequence[Checkpoint]) -> Checkpoint:
    """A note where a later stage counts its steps from 0 again."""
    restarted = (
        checkpoint.tokens is not None  # otherwise the question for D says so
        and checkpoint.stage
        and any(e.stage != checkpoint.stage and (e.step or 0) > (checkpoint.step or 0) for e in earlier)
    )
    if not restarted:
        return checkpoint
    message = f"{checkpoint.stage} counts its steps from 0 again ({checkpoint.tokens_note})"
    return noted(checkpoint, "stage_restart", message, fatal=False)


def _with_twins(checkpoints: Sequence[Checkpoint], sketches: Sequence[Sketch | None]) -> list[Checkpoint]:
    """Each checkpoint with the earlier one of the same weights, else with the nearest of nearly the same.

    One that is excluded for itself, as without a configuration, takes no other with it.
    """
    found: list[Checkpoint] = []
    for index, checkpoint in enumerate(checkpoints):
        usable = (place for place in range(index) if not checkpoints[place].fatal)
        earlier = sorted(usable, key=lambda place: checkpoints[place].run != checkpoint.run)
        same = [place for place in earlier if _same(checkpoint, checkpoints[place], sketches[index], sketches[place])]
        mine = sketches[index]
        if same and checkpoints[same[0]].run == checkpoint.run:
            other = checkpoints[same[0]]
            message = f"the same weights as {other.name}"
            if other.weights_sha != checkpoint.weights_sha:
                message += ", in a file with other names or further tensors"
            checkpoint = noted(checkpoint, "identical_weights", message)
        elif mine is not None:
            pairs = (
                (0.0 if p in same else mine.distance(other), p) for p, other in enumerate(sketches[:index]) if other
            )
            near = min(((far, place) for far, place in pairs if far is not None and far < NEAR), default=None)
            if near is not None:
                message = _nearness(checkpoint, checkpoints[near[1]], near[0], near[1] in same)
                checkpoint = noted(checkpoint, "near_identical", message, fatal=False)
        found.append(checkpoint)
    return found


def _same(one: Checkpoint, other: Checkpoint, first: Sketch | None, second: Sketch | None) -> bool:
    """Whether two files hold the same weights: all of their tensors, or all that are parameters."""
    contents = first is not None and second is not None and first.contents and first.contents == second.contents
    return bool(contents or (one.weights_sha and one.weights_sha == other.weights_sha))


def _nearness(checkpoint: Checkpoint, other: Checkpoint, far: float, same: bool) -> str:
    message = f"nearly the weights of {other.name}: relative distance {far:.2g}, under {NEAR:g}"
    if same:
        message = f"the same weights as {other.name}, bit for bit"
    elif not far:
        message = f"nearly the weights of {other.name}: no difference among the entries compared"
    if other.run != checkpoint.run:
        message += "; two runs that share weights are not independent"
    return message
