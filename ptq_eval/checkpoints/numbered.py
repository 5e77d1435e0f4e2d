"""Folders and revisions numbered in any way: `step_98`, `iter_0000098/hf`, `98`, `epoch_1`, `stage1-step98-tokens5B`.

Sibling folders whose names differ in a number make one run, in order of that number.  Different stems
(`small-step98`, `large-step98`) and models of different sizes are separate runs.

If a public suite uses such names, its rule gives D; otherwise a count in the name does, and failing that
the user is asked for D, once per run.  A count in a label is rounded, which early in training is an error of up to
100 %; where a suite's rule agrees with it within the rounding, the rule's number is taken.  Later stages count from 0
again in most suites: what came before is added where it is known, and otherwise D is unknown, for a count within a
stage among counts of the whole training would be wrong by orders of magnitude.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ptq_eval import units
from ptq_eval.checkpoints import labels, suites
from ptq_eval.checkpoints.base import (
    ASK_TOKENS,
    BELOW_NUMBER,
    POSSIBLE_STEP,
    UNKNOWN_STEP,
    UNKNOWN_TOKENS,
    CheckpointFormat,
    Position,
    counted,
    holds_model,
    holds_weights,
    subfolders,
)
from ptq_eval.checkpoints.labels import Label
from ptq_eval.checkpoints.numerals import numbers_in
from ptq_eval.checkpoints.problems import beside
from ptq_eval.checkpoints.suite_rules import FIRST_STAGES, Batches, Suite
from ptq_eval.errors import PtqEvalError
from ptq_eval.models.parameters import read_config
from ptq_eval.records import Checkpoint

RATE_UNUSED = "tokens_per_step_unused"
"""The problem of checkpoints to which `tokens_per_step` does not apply."""
_Groups = dict[tuple[str, int | None], list[Checkpoint]]
"""Checkpoints by the stem of their names and the model's N."""
_GENERIC = {"hf", "checkpoints", "checkpoint", "ckpts", "ckpt", "models", "weights", "output", "outputs", "snapshots"}
"""Names of folders that say nothing about the model; the folder above is asked."""


class Numbered(CheckpointFormat):
    """Any name with a number whose meaning is known, or in which siblings differ."""

    name = "numbered"
    looks_like = "any name with a number whose meaning is known, or in which siblings differ"
    fallback = True

    def position(self, model: str, label: str) -> Position | None:
        """What the label says, with D where a public suite's rule or the label itself gives it."""
        found = labels.read(label)
        return place(model, label, found) if found else None

    def discover(self, root: Path) -> list[Checkpoint]:
        """The numbered checkpoints inside `root`, up to two folders below their number."""
        folders = _folders(root)
        model = root.parent.name if root.name.lower() in _GENERIC else root.name
        read = labels.read_siblings(name.partition("/")[0] for name in folders)
        groups: _Groups = defaultdict(list)
        for name, folder in folders.items():
            first, _, below = name.partition("/")
            if label := read.get(first):
                checkpoint = self.describe(folder, place(model, first, label))
                checkpoint = counted(replace(checkpoint, revision=name))
                groups[f"{label.stem}/{below}".strip("/"), checkpoint.params].append(checkpoint)
        return _named(_joined(groups))

    def describe(self, folder: Path, position: Position) -> Checkpoint:
        """With D by the batch that `_name_or_path` of config.json states, where nothing better is known."""
        checkpoint = super().describe(folder, position)
        if checkpoint.tokens is not None or checkpoint.step is None:
            return checkpoint
        try:
            stated = suites.from_path(str(read_config(folder).get("_name_or_path") or ""))
        except PtqEvalError:
            return checkpoint
        if stated is None:
            return checkpoint
        suite, per_step = stated
        note = f"{title(suite)}: step × {per_step:,}, by _name_or_path of config.json"
        return replace(checkpoint, tokens=checkpoint.step * per_step, tokens_source="derived", tokens_note=note)


def _folders(root: Path) -> dict[str, Path]:
    """The folders that may be checkpoints, by name relative to `root`; those that hold the rest of it excepted."""
    found = {}
    children = subfolders(root)
    numbered = labels.read_siblings(child.name for child in children)
    for child in children:
        if holds_model(child):
            found[child.name] = child
        elif labels.read(child.name) or (child.name in numbered and not _has_numbers(child)):
            found |= {folder.relative_to(root).as_posix(): folder for folder in _below(child, BELOW_NUMBER)}
    return found


def _has_numbers(folder: Path) -> bool:
    """Whether a folder has numbered ones, as a run's has, at the depth of a checkpoint's model or above."""
    names = [child.relative_to(folder) for child in folder.glob("/".join("*" * BELOW_NUMBER)) if child.is_dir()]
    parts = {part for name in names for part in name.parts} | {child.name for child in subfolders(folder)}
    return bool(labels.read_siblings(parts))


def _below(folder: Path, levels: int) -> Iterator[Path]:
    """The models some levels below a folder with a number, unless they have numbers of their own."""
    for child in subfolders(folder):
        if labels.read(child.name):
            continue
        if holds_weights(child):
            yield child
        elif levels > 1:
            yield from _below(child, levels - 1)


def _joined(groups: _Groups) -> _Groups:
    """Without groups that are no run: one of unknown size joins the only other of its stem, and a name is read by
    its siblings only if there are any."""
    for stem in [stem for stem, size in groups if size is None]:
        sizes = [size for other, size in groups if other == stem and size is not None]
        if len(sizes) == 1:
            groups[stem, sizes[0]] += groups.pop((stem, None))
    return {
        key: group
        for key, group in groups.items()
        if len(group) > 1 or labels.read(group[0].revision.partition("/")[0])
    }


def _named(groups: _Groups) -> list[Checkpoint]:
    """The checkpoints of all groups; of several, each is a run named after its stem, and its size if need be."""
    named = []
    for (stem, size), group in groups.items():
        run = f"./{stem or 'numbers'}" if len(groups) > 1 else ""
        if size is not None and sum(other == stem for other, _ in groups) > 1:
            run += f"-{units.write(size, digits=None)}"
        named += [replace(checkpoint, run=run) for checkpoint in group]
    return named


_ASK_WHOLE = "give the whole D with --tokens or a trajectory.yaml"
_UNKNOWN = {
    "step": UNKNOWN_TOKENS,
    "number": f"the number in the name is taken for the step; {UNKNOWN_TOKENS}",
    "epoch": f"numbered by epochs, and tokens per epoch are not known; {ASK_TOKENS} (a step is an epoch here)",
}


def place(model: str, name: str, label: Label) -> Position:
    """The place of `label`, read off the folder or revision `name` of a model or run called `model`."""
    suite = suites.find(model, name)
    prefix = f"{title(suite)}: " if suite else ""
    by_rule = suite.tokens_in_stage(label) if suite else None
    before = suite.tokens_before(label) if suite else (None if _later_stage(label.stage) else 0)
    at = Position(label.step, stage=label.stage, unit=label.unit, note=_unknown(label, suite))
    if before is None:
        note = f"{prefix}counted from the start of {label.stage}, and what came before is not known; {_ASK_WHOLE}"
        return replace(at, note=note)
    if suite and by_rule is not None and _agree(by_rule, label, suite):
        at = replace(at, tokens=by_rule, source="derived", note=prefix + _rule(suite, label))
    elif label.tokens is not None and (label.said or suite):
        note = f"{prefix}label, ± {units.write(label.rounding)}"
        note += f"; {_rule(suite, label)} would be {units.write(by_rule)}" if suite and by_rule is not None else ""
        at = replace(at, tokens=label.tokens, source="label", note=note)
    if at.tokens is None or before == 0:
        return at
    return replace(at, tokens=before + at.tokens, note=f"{at.note}; plus {before:,} of earlier stages")


def place_revision(model: str, revision: str, position: Position | None) -> tuple[str, Position | None]:
    """(run, position) of a revision on the hub, which `position` says if its name is a label.

    Where the suite has a repository per checkpoint, that is read off the repository's name.
    """
    if position is not None:
        stem = label.stem if (label := labels.read(revision)) else ""
        words = stem.replace("_", "-").lower().split("-")
        return (model if all(map(labels.counts, words)) else f"{model}/{stem}"), position
    owner, _, name = model.rpartition("/")
    label = labels.read(name)
    if label is None or label.step is None or label.unit != "step":
        return model, None
    return f"{owner}/{label.stem}".strip("/"), place(owner, name, label)


def with_numbers_as_steps(checkpoints: Sequence[Checkpoint]) -> tuple[Checkpoint, ...]:
    """The checkpoints of a run with the numbers in their names as steps, where these may be steps and none is known.

    For a user who says how many tokens a step has, and so that the numbers count steps.
    """
    names = [_number_folder(c) for c in checkpoints if c.step is None]
    numbers = {name: label.number for name, label in labels.read_siblings(names).items()}
    found = [c if c.step is not None else replace(c, step=numbers.get(_number_folder(c))) for c in checkpoints]
    steps = [checkpoint.step for checkpoint in found if checkpoint.step is not None]
    return tuple(found if len({*steps}) == len(steps) else checkpoints)


def with_unused_rate(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """With a warning at the first of a run's checkpoints to which the user's `tokens_per_step` does not apply."""
    found = list(checkpoints)
    others = [index for index, c in enumerate(found) if c.tokens_source != "user" and not beside(c)]
    for reason, places in (
        ("which step each is of is not known", [index for index in others if found[index].step is None]),
        ("the steps of a later stage start at 0 again", [index for index in others if steps_restart(found[index])]),
    ):
        if places:
            message = f"tokens_per_step is not applied to {len(places)} of {len(found)} checkpoints: {reason}"
            found[places[0]] = found[places[0]].with_problem(RATE_UNUSED, message)
    return found


def _number_folder(checkpoint: Checkpoint) -> str:
    """The folder with the number; the model may be below it."""
    return checkpoint.revision.partition("/")[0]


def steps_restart(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint's step counts from the start of a later stage, not from the start of training."""
    suite = suites.find(checkpoint.run, checkpoint.revision)
    return _later_stage(checkpoint.stage) and not (suite and suite.global_steps)


def numbered_by(checkpoint: Checkpoint) -> str:
    """What a checkpoint's `step` counts: "step", "epoch" or "number in the name"."""
    name = _number_folder(checkpoint)
    label = labels.read(name)
    if label is None and checkpoint.format == Numbered.name:
        return "number in the name" if checkpoint.step in [n.value for n in numbers_in(name)] else "step"
    unit = label.unit if label and label.step == checkpoint.step else "step"
    return {"epoch": "epoch", "number": "number in the name"}.get(unit, "step")


def _later_stage(stage: str) -> bool:
    return stage.partition("-")[0] not in FIRST_STAGES


def _agree(tokens: int, label: Label, suite: Suite) -> bool:
    return label.tokens is None or abs(tokens - label.tokens) <= label.rounding + suite.label_error * tokens


def title(suite: Suite) -> str:
    """A suite's name and how far its rule can be trusted."""
    return f"{suite.name} ({suite.status.value})"


def _rule(suite: Suite, label: Label) -> str:
    what = f"(checkpoint number + {suite.first})" if suite.first else "step"
    return f"{what} × {_listed(suite.batches_of(label))}"


def _listed(batches: Batches, shown: int = 2) -> str:
    (_, first), *later = batches
    if len(later) > shown:
        return f"a batch that grows from {first:,} to {later[-1][1]:,} at step {later[-1][0]:,}"
    return ", ".join([f"{first:,}", *(f"{per_step:,} from step {start:,} on" for start, per_step in later)])


def _unknown(label: Label, suite: Suite | None) -> str:
    if suite:
        return f"{title(suite)}: {suite.source}; {ASK_TOKENS}"
    if label.step is None:
        return UNKNOWN_STEP if label.number is None else POSSIBLE_STEP
    return _UNKNOWN[label.unit]
