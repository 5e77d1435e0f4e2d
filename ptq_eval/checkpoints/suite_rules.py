"""The rule of a public suite: how it names its checkpoints, and how many tokens a name means.

A rule is a list of batches, since some suites changed theirs during training; stages that count their steps from 0
again have batches of their own and a number of tokens before them.  `check` is a published label or total that the rule
must reproduce.  Where a label states tokens and differs from the rule by more than its rounding, the label is taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from ptq_eval.checkpoints import stamps
from ptq_eval.checkpoints.labels import Label

Batches = Sequence[tuple[int, int]]
"""(from this step on, tokens per step), in order of step."""


class Status(Enum):
    """How far a suite's rule can be trusted."""

    VERIFIED = "verified"
    DERIVED = "derived"
    LABEL = "label only"
    ASK = "ask"


@dataclass(frozen=True)
class Check:
    """A checkpoint for which D is published: `tokens`, within a relative `tolerance`."""

    model: str
    label: str
    tokens: float | None = None
    tolerance: float = 0.001


@dataclass(frozen=True)
class Suite:
    """The names of one suite and its rule.

    `models` matches the name of the repository or of the run's folder, `labels` the name of a revision or checkpoint's
    folder, both in any case and with `-` or `_`; a folder may have both names in one (`pythia-160m-step1000-hf`).
    `batches` holds before and in stage 1, `stages` for later stages that count their steps
    from 0 again: (tokens before the stage, its batches).  With `global_steps` steps run on through all stages.
    `first` is the number of batches behind the checkpoint numbered 0.  `path` matches `_name_or_path` of config.json
    and captures the sequences per step (`batch`) and their length (`context`).  `seeds` matches the seed in the name of
    a run, where the suite has runs that differ in nothing else.  `repositories` are the best known ones on the hub,
    that of `check` among them if it is empty.  `span` holds the labels of the first and the last checkpoint, each ""
    where it is not known, and `schedule` what is published of the learning rate.
    """

    name: str
    status: Status
    models: str
    labels: str
    check: Check
    source: str
    batches: Batches = ()
    stages: Mapping[str, tuple[int, Batches]] = field(default_factory=dict)
    global_steps: bool = False
    first: int = 0
    label_error: float = 0.0
    path: str = ""
    seeds: str = ""
    repositories: tuple[str, ...] = ()
    span: tuple[str, str] = ("", "")
    schedule: str = ""

    @property
    def known(self) -> tuple[str, ...]:
        """The repositories that are known by name."""
        return self.repositories or (self.check.model,)

    @property
    def organisation(self) -> str:
        """Whose repositories they are on the hub."""
        return self.check.model.partition("/")[0]

    def names(self, model: str, label: str) -> bool:
        """Whether a checkpoint called `label` of a model or run called `model` belongs to this suite."""
        model, label = _bare(re.split(r"/|--", model)[-1]), _bare(label)
        whole = (self._may_be(model) or self._may_be(label)) and _matches(self.labels, label)
        return whole or any(
            self._may_be(label[: at.start()]) and _matches(self.labels, label[at.end() :])
            for at in re.finditer("-", label)
        )

    def _may_be(self, name: str) -> bool:
        """Whether a folder has the name of a model of this suite, which may begin with the organisation's."""
        return _matches(f"({re.escape(self.organisation)}-+)?({self.models})", name)

    def has_model(self, name: str) -> bool:
        """Whether a repository, without its organisation, has a name of this suite."""
        return _matches(self.models, name)

    def tokens_in_stage(self, label: Label) -> int | None:
        """The tokens of the label's own stage up to its step, or None where no rule says so."""
        batches = self._stage(label)[1]
        return tokens_after(label.step + self.first, batches) if batches and label.step is not None else None

    def tokens_before(self, label: Label) -> int | None:
        """The tokens of all stages before the label's, or None where that is not known."""
        return self._stage(label)[0]

    def batches_of(self, label: Label) -> Batches:
        """The batches of the label's stage; empty where they are not known."""
        return self._stage(label)[1]

    def _stage(self, label: Label) -> tuple[int | None, Batches]:
        stage = label.stage.partition("-")[0]
        if self.global_steps or stage in FIRST_STAGES:
            return 0, self.batches
        return self.stages.get(stage, (None, ()))


FIRST_STAGES = ("", "stage1", "phase1", "pretrain")
"""Stages before which there is none."""


def tokens_after(step: int, batches: Batches) -> int:
    """The tokens of the first `step` steps."""
    ends = [start for start, _ in batches[1:]] + [step]
    return sum(max(min(end, step) - start, 0) * per_step for (start, per_step), end in zip(batches, ends, strict=True))


def constant(per_step: int) -> Batches:
    """The same number of tokens in every step."""
    return ((0, per_step),)


def ramp(first: int, increment: int, last: int, samples: int, length: int) -> Batches:
    """Megatron's `--rampup-batch-size`: sequences per step grow evenly over the first `samples` sequences."""
    batches, step, seen, size = [], 0, 0, first
    per_size = samples // ((last - first) // increment)
    while size < last:
        batches.append((step, size * length))
        steps = -(-(per_size * len(batches) + 1 - seen) // size)
        step, seen, size = step + steps, seen + steps * size, size + increment
    return (*batches, (step, last * length))


def _bare(label: str) -> str:
    """A name with `-` between its words and without those at its end that count nothing, such as `hf`."""
    words = re.split("[-_@: ]", label)
    while len(words) > 1 and stamps.is_neutral(words[-1].lower()):
        words.pop()
    return "-".join(words)


def _matches(pattern: str, name: str) -> bool:
    """Whether a whole name is of a pattern, in any case and with `-` or `_` between its words."""
    return re.fullmatch(pattern.replace("_", "-"), name.replace("_", "-"), re.IGNORECASE) is not None
