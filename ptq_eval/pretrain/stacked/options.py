"""The options of one run of a study: those of `PretrainConfig`, and precision, optimizer, schedules and averages.

This file imports no torch, so that help is printed at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ptq_eval.config.options import COUNT, NUMBER, Kind, option
from ptq_eval.errors import OptionError, PtqEvalError, did_you_mean
from ptq_eval.pretrain.config import PretrainConfig
from ptq_eval.pretrain.schedule import branch_factor, factor

FULL = "full"
PARTS = ("weights", "activations", "kv")
"""The options that name a precision."""
INTEGERS = range(3, 17)
SCHEDULES = ("constant", "cosine", "linear", "inverse-sqrt", "wsd")
PER_D = ("cosine", "linear")
"""Schedules that end at a D of their own: a run of its own for each D/N."""


def _precision(value: Any, *, name: str, error: type[PtqEvalError]) -> str:
    text = str(value).strip().lower()
    allowed = f"{FULL}, {INTEGERS[0]} to {INTEGERS[-1]} bits, or a number format whose blocks have any size"
    if text == FULL or (text.isdigit() and int(text) in INTEGERS):
        return str(int(text)) if text.isdigit() else text
    from quantizers.formats import FORMATS

    known = [one.name for one in FORMATS.values() if not (one.blocks or one.affine or one.search or one.outer_block)]
    if text not in known:
        remedy = did_you_mean(text, known)
        raise error(f"{name} is not a precision to train in", got=repr(value), allowed=allowed, remedy=remedy)
    return text


PRECISION = Kind(_precision, "BITS|FORMAT")


@dataclass(frozen=True)
class RunOptions(PretrainConfig):
    """All that determines the weights of one run of a study, but for the text.  Raises OptionError."""

    schedule: Any = option(
        "constant",
        "Learning rate over time; cosine, linear: a run for each D/N; wsd: a trunk and an annealed branch for each.",
        choices=SCHEDULES,
    )
    optimizer: str = option("adamw", "adamw, or muon for the matrices of the blocks.", choices=("adamw", "muon"))
    data_seed: int | None = option(None, "Seed of the order of the text.", COUNT, low=0, unset="the seed")
    weights: str = option(FULL, "Precision of weights.", PRECISION)
    activations: str = option(FULL, "Precision of the inputs of linear layers.", PRECISION)
    kv: str = option(FULL, "Precision of keys and values.", PRECISION)
    weights_per: str = option("channel", "What shares a scale.", choices=("channel", "tensor"))
    activations_per: str = option("tensor", "What shares a scale.", choices=("tensor", "token"))
    kv_per: str = option("tensor", "What shares a scale.", choices=("tensor", "token", "head"))
    low_precision_share: float = option(1.0, "Share of a run, at its end, in low precision.", above=0, high=1)
    ema: tuple[float, ...] = option(
        (), "Decays of exponential averages of the weights.", NUMBER, many=True, above=0, below=1
    )
    lawa: tuple[int, ...] = option((), "Average the last so many snapshots of the weights.", COUNT, many=True, low=2)
    lawa_every: int = option(50, "Steps between snapshots.", low=1)
    validation_windows: int = option(32, "Windows at the end of the text that are never trained on.", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.architecture != "llama":
            raise OptionError("runs of a study are llama models", got=self.architecture, remedy="omit architecture")
        for name in ("ema", "lawa"):
            object.__setattr__(self, name, tuple(sorted(set(getattr(self, name)))))

    @property
    def order_seed(self) -> int:
        """The seed of the order of the text."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def shape(self) -> tuple[Any, ...]:
        """What runs must have in common to be trained as one stack."""
        return (
            *(self.width, self.layers, self.vocab, self.context, self.batch_size, self.optimizer),
            *(self.weights_per, self.activations_per, self.kv_per, self.ema, self.lawa, self.lawa_every),
            self.validation_windows,
        )

    def factor(self, step: int, total: int) -> float:
        """The learning rate of the trunk at `step` (0-based) of `total`, divided by the peak rate."""
        if step >= self.warmup and self.schedule == "inverse-sqrt":
            return math.sqrt(max(1, self.warmup) / (step + 1))
        if step >= self.warmup and self.schedule == "linear":
            return branch_factor(step, start=self.warmup, end=total)
        return factor(self.schedule, step, warmup=self.warmup, total=total)

    def phase(self, step: int, total: int) -> str:
        """The phase of the trunk's schedule after `step` steps."""
        if step < self.warmup:
            return "warmup"
        if self.schedule in PER_D:
            return "annealed" if step == total else "decay"
        return "decay" if self.schedule == "inverse-sqrt" else "constant"
