"""Place a label on the axis of tokens: by the rule of its suite, else by the count that it states, else not at all.

A count in a label is rounded, which early in training is an error of up to 100 %; where a suite's rule agrees with it
within the rounding, the rule's number is taken.  Later stages count from 0 again in most suites: what came before is
added where it is known, and otherwise D is unknown, for a count within a stage among counts of the whole training
would be wrong by orders of magnitude.
"""

from __future__ import annotations

from dataclasses import replace

from ptq_eval import units
from ptq_eval.checkpoints import labels, suites
from ptq_eval.checkpoints.base import ASK_TOKENS, UNKNOWN_TOKENS, Position
from ptq_eval.checkpoints.labels import Label
from ptq_eval.checkpoints.rules import FIRST_STAGES, Batches, Suite
from ptq_eval.records import Checkpoint

_UNKNOWN = {
    "step": UNKNOWN_TOKENS,
    "number": UNKNOWN_TOKENS,
    "epoch": f"numbered by epochs, and tokens per epoch are not known; {ASK_TOKENS} (a step is an epoch here)",
}


def place(model: str, name: str, label: Label) -> Position:
    """The place of `label`, read off the folder or revision `name` of a model or run called `model`."""
    suite = suites.find(model, name)
    prefix = f"{title(suite)}: " if suite else ""
    by_rule = suite.tokens_in_stage(label) if suite else None
    before = suite.tokens_before(label) if suite else (None if _later_stage(label.stage) else 0)
    at = Position(label.step, stage=label.stage, unit=label.unit, note=_unknown(label, suite))
    if suite and by_rule is not None and _agree(by_rule, label, suite):
        at = replace(at, tokens=by_rule, source="derived", note=prefix + _rule(suite, label))
    elif label.tokens is not None:
        note = f"{prefix}label, ± {units.write(label.rounding)}"
        note += f"; {_rule(suite, label)} would be {units.write(by_rule)}" if suite and by_rule is not None else ""
        at = replace(at, tokens=label.tokens, source="label", note=note)
    if at.tokens is None or before == 0:
        return at
    if before is None:
        note = f"{prefix}counted from the start of {label.stage}, and what came before is not known; {ASK_TOKENS}"
        return replace(at, tokens=None, source="unknown", note=note)
    return replace(at, tokens=before + at.tokens, note=f"{at.note}; plus {before:,} of earlier stages")


def place_revision(model: str, revision: str, position: Position | None) -> tuple[str, Position | None]:
    """(run, position) of a revision on the hub, which `position` says if its name is a label.

    Where the suite has a repository per checkpoint, that is read off the repository's name.
    """
    if position is not None:
        label = labels.read(revision)
        words = label.stem.replace("_", "-").lower().split("-") if label else []
        return (model if all(labels.counts(word) for word in words) else f"{model}/{label.stem}"), position
    owner, _, name = model.rpartition("/")
    label = labels.read(name)
    if label is None or label.step is None or label.unit != "step":
        return model, None
    return f"{owner}/{label.stem}".strip("/"), place(owner, name, label)


def steps_restart(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint's step counts from the start of a later stage, not from the start of training."""
    suite = suites.find(checkpoint.run, checkpoint.revision)
    return _later_stage(checkpoint.stage) and not (suite and suite.global_steps)


def numbered_by(checkpoint: Checkpoint) -> str:
    """What a checkpoint's `step` counts: "step" or "epoch"."""
    label = labels.read(checkpoint.revision.partition("/")[0])
    return "epoch" if label and label.unit == "epoch" and label.step == checkpoint.step else "step"


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
    return _UNKNOWN[label.unit]
