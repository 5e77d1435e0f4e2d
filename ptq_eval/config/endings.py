"""What `average` and `probe` can be asked, and the grammar of branches: `decay:10%`, `qat:5%@4`, `average:8`.

A branch is KIND:AMOUNT, for quantization-aware training with @PRECISION after it:

decay:10%          trained on while the learning rate falls linearly to zero; the branch is the last 10 % of its D
qat:5%@4           trained on at the trunk's learning rate with weights rounded to 4 bits, for the last 5 % of its D
decay+qat:10%@4    both at once
average:8          the mean of the last 8 checkpoints that were saved, this one included
ema:0.999, lawa:8  the average of this name that the run saved beside this checkpoint

This file imports neither torch nor the laws, so that help is printed at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ptq_eval import units
from ptq_eval.config.options import COUNT, SWITCH, TEXT, Kind, Options, option
from ptq_eval.config.study import STEP
from ptq_eval.errors import OptionError, PtqEvalError, did_you_mean

DECAY, QAT, BOTH, AVERAGE, EMA, LAWA = "decay", "qat", "decay+qat", "average", "ema", "lawa"
TRAINED = (DECAY, QAT, BOTH)
"""Kinds of branches that are trained."""
SAVED_AVERAGES = (EMA, LAWA)
KINDS = (*TRAINED, AVERAGE, *SAVED_AVERAGES)
EXAMPLE = "--branch decay:10% --branch average:4"
_FORMS = {
    DECAY: "decay:SHARE", QAT: "qat:SHARE@BITS", BOTH: "decay+qat:SHARE@BITS", AVERAGE: "average:COUNT",
    EMA: "ema:DECAY", LAWA: "lawa:COUNT",
}  # fmt: skip
_AMOUNTS = {DECAY: "10%", QAT: "10%", BOTH: "10%", AVERAGE: "4", EMA: "0.999", LAWA: "8"}
_QAT_PRECISION = "4"
_MOST_SHARE = 0.9
"""A branch of ten times what the trunk was trained on is no ending of it."""


@dataclass(frozen=True)
class Branch:
    """A way to end a run.

    `amount` is, by kind, the share of its D in which a branch differs from the trunk, the number of checkpoints or
    snapshots, or the decay of an exponential average; `precision` is what weights are trained in, "" for the trunk's.
    """

    kind: str
    amount: float
    precision: str = ""

    @property
    def name(self) -> str:
        """The branch as it is written."""
        amount = f"{100 * self.amount:g}%" if self.trained else f"{self.amount:g}"
        return f"{self.kind}:{amount}" + (f"@{self.precision}" if self.precision else "")

    @property
    def trained(self) -> bool:
        """Whether it goes on training, so that it ends at a larger D."""
        return self.kind in TRAINED

    @property
    def decays(self) -> bool:
        """Whether the learning rate falls to zero."""
        return self.kind in (DECAY, BOTH)

    def end(self, start: int) -> int:
        """The step at which a trained branch ends that leaves the trunk at step `start`, of which it is the last
        `amount`: the inverse of `pretrain.schedule.branch_start`.  Raises OptionError where this is no step."""
        end = round(start / (1 - self.amount))
        if end <= start:
            least = f"about {100 / (start + 1):.2g}% or more, which is one step"
            what = "a branch of less than half a step"
            raise OptionError(what, got=f"{self.name} of step {start}", allowed=least, remedy=f"{self.kind}:10%")
        return end


def _branch(value: Any, *, name: str, error: type[PtqEvalError]) -> Branch:
    if isinstance(value, Branch):
        return value
    text = str(value).strip().lower()
    kind, _, rest = text.partition(":")
    amount, at, precision = (part.strip() for part in rest.partition("@"))
    if not amount and (known := kind.partition("@")[0].strip()) in KINDS:
        at = f"@{precision or kind.partition('@')[2] or _QAT_PRECISION}" if known in (QAT, BOTH) else ""
        what = "a branch needs its amount"
        raise error(what, got=repr(value), allowed=_FORMS[known], remedy=f"for example {known}:{_AMOUNTS[known]}{at}")
    if kind not in KINDS:
        remedy = did_you_mean(kind, KINDS) or f"for example {EXAMPLE}"
        raise error("unknown branch", got=repr(value), allowed=f"KIND:AMOUNT with {', '.join(KINDS)}", remedy=remedy)
    if at and kind not in (QAT, BOTH):
        raise error(f"{kind} has no precision", got=repr(value), remedy=f"{kind}:{amount}, or qat:{amount}@{precision}")
    if at and not precision:
        raise error("the precision of a branch is empty", got=repr(value), remedy=f"{kind}:{amount}@{_QAT_PRECISION}")
    if kind in TRAINED:
        precision = precision or (_QAT_PRECISION if kind != DECAY else "")
        return Branch(kind, _share(amount, value, error), precision)
    if kind == EMA:
        decay = units.read_number(amount, units.PLAIN, name="the decay of ema", error=error)
        if not 0 < decay < 1:
            raise error("the decay of ema is out of range", got=repr(value), allowed="above 0, below 1")
        return Branch(kind, decay)
    count = COUNT.read(amount, name=f"the number of {kind}", error=error)
    if count < 2:
        raise error(f"{kind} needs several", got=repr(value), allowed="at least 2")
    return Branch(kind, count)


def _share(amount: str, value: Any, error: type[PtqEvalError]) -> float:
    number, per_cent = amount.removesuffix("%").strip(), amount.endswith("%")
    share = units.read_number(number, units.PLAIN, name="the share of a branch", error=error)
    share = share / 100 if per_cent else share
    if not 0 < share <= _MOST_SHARE:
        allowed = f"above 0%, at most {100 * _MOST_SHARE:g}%"
        raise error("the share of a branch is out of range", got=repr(value), allowed=allowed, remedy="decay:10%")
    return share


@dataclass(frozen=True)
class AverageConfig(Options):
    """Which averages of a trajectory's checkpoints are made.  Raises OptionError."""

    windows: tuple[int, ...] = option((2, 4, 8), "Average the last so many checkpoints.", COUNT, many=True, low=2)
    steps: tuple[int | str, ...] = option(
        ("last",), "Checkpoints at which averages end.", STEP, many=True, metavar="STEP,…|first,last|all"
    )
    keep: bool = option(False, "Keep the averages, in OUT/averages, instead of one at a time on the disk.")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "windows", tuple(sorted(set(self.windows))))
        if not self.windows or not self.steps:
            raise OptionError("--windows and --steps need a value", remedy="--windows 2,4,8 --steps last")


@dataclass(frozen=True)
class ProbeConfig(Options):
    """How a run may end from one of its checkpoints.  Raises OptionError."""

    branch: tuple[Branch, ...] = option(
        (),
        f"A way to end the run: {', '.join(list(_FORMS.values())[:-1])} or {_FORMS[LAWA]}; may be repeated.",
        Kind(_branch, "KIND:AMOUNT"),
        many=True,
        repeated=True,
    )
    text: str | None = option(None, "Text that the run was trained on.", TEXT, unset="as its pretrain.json says")
    compile: bool | None = option(
        None, "Use torch.compile.", SWITCH, off="--no-compile", unset="on CUDA, and for long branches"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "branch", tuple(dict.fromkeys(self.branch)))
        if not self.branch:
            raise OptionError("--branch names no way to end the run", remedy=EXAMPLE)
