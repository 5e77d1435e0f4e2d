"""What the studies of stored or measured checkpoints can be asked: the options of `backtest` and of `sensitivity`.

This file imports neither the laws nor torch, so that help is printed at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ptq_eval.config.options import COUNT, Kind, Options, option
from ptq_eval.errors import OptionError, PtqEvalError, did_you_mean

FEWEST_TO_TEST = 5
STEP_WORDS = ("all", "first", "last")


@dataclass(frozen=True)
class BacktestConfig(Options):
    """The options of a backtest.  Raises OptionError."""

    level: float = option(0.9, "Level of the intervals.", above=0, below=1, metavar="P")
    min_checkpoints: int = option(8, "Minimum number of checkpoints per run.", low=FEWEST_TO_TEST)
    horizon: float = option(
        16.0, "Search for D_crit up to X times the D of the forecast; open beyond.", above=1, high=1e6
    )
    seed: int = option(0, "Random seed.", low=0)


def _step(value: Any, *, name: str, error: type[PtqEvalError]) -> int | str:
    if isinstance(value, str) and value.lower() in STEP_WORDS:
        return value.lower()
    try:
        return COUNT.read(value, name=name, error=error)
    except error as problem:
        allowed = f"a step, {', '.join(STEP_WORDS)}"
        raise error(
            f"{name} is not a step", got=problem.got, allowed=allowed, remedy=did_you_mean(value, STEP_WORDS)
        ) from None


@dataclass(frozen=True)
class SensitivityConfig(Options):
    """The options of a sensitivity study that a run lacks: `steps` are steps, or the words all, first and last.

    Raises OptionError.
    """

    steps: tuple[int | str, ...] = option(
        ("all",), "Checkpoints of each run.", Kind(_step, "STEP"), many=True, metavar="STEP,…|first,last|all"
    )
    by: Literal["layer", "part"] = option(
        "layer",
        "Quantize one layer at a time, or one part: embedding, head, attention and MLP.",
        choices=("layer", "part"),
    )
    draws: int = option(2, "Labels drawn per calibration window.", low=1)
    seed: int = option(0, "Seed of those labels.", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.steps:
            raise OptionError("--steps names no checkpoint", allowed=f"steps, {', '.join(STEP_WORDS)}")
