"""What happens in a watch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ptq_eval.errors import PtqEvalError
from ptq_eval.jobs.run import RunResult
from ptq_eval.laws.turning.alerts import Alert
from ptq_eval.records import Checkpoint


@dataclass(frozen=True)
class Started:
    """A checkpoint is being measured."""

    checkpoint: Checkpoint


@dataclass(frozen=True)
class Measured:
    """A checkpoint was measured in so many `seconds`; `result` covers all checkpoints so far.

    spent: seconds of the machine's time that measuring has taken so far (see `jobs.spent`).
    """

    checkpoint: Checkpoint
    result: RunResult
    seconds: float
    spent: float


@dataclass(frozen=True)
class Unmeasured:
    """A checkpoint cannot be measured; it is tried again when its files change."""

    checkpoint: Checkpoint
    error: PtqEvalError


@dataclass(frozen=True)
class Delayed:
    """Nothing could be done at this look, because of the `error`; the next one tries again."""

    error: PtqEvalError


@dataclass(frozen=True)
class Waiting:
    """Nothing is left to measure at present; `checkpoints` are known, and these wait for their files or the budget."""

    checkpoints: int
    incomplete: int
    beyond_budget: int


Event: TypeAlias = Started | Measured | Unmeasured | Delayed | Waiting | Alert
