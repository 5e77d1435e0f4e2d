"""What the studies of stored or measured checkpoints can be asked: the options of `backtest` and of `sensitivity`.

This file imports neither the laws nor torch, so that help is printed at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from ptq_eval import units
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


STEP = Kind(_step, "STEP")


@dataclass(frozen=True)
class Budget:
    """What a mixed model may take: mean stored "bits" per quantized weight, or "bytes" of all weights.

    "uniform": the bits of each uniform scheme but the smallest and the largest.
    """

    unit: Literal["bits", "bytes", "uniform"]
    value: float = 0.0
    name: str = "uniform"


def _budget(value: Any, *, name: str, error: type[PtqEvalError]) -> Budget:
    if isinstance(value, Budget):
        return value
    text = str(value).strip()
    if text.lower() == "uniform":
        return Budget("uniform")
    bits = re.fullmatch(r"(.*\d)\s*bits?", text, re.IGNORECASE)
    if not bits and not re.fullmatch(r".*\d\s*[kmgt]?i?b", text, re.IGNORECASE):
        allowed = "bits per weight, such as 3.5bits; bytes of all weights, such as 60MB; or uniform"
        raise error(f"{name} is not a size", got=repr(value), allowed=allowed)
    number = units.read_number(bits[1] if bits else text, units.PLAIN if bits else units.BYTES, name=name, error=error)
    if number <= 0:
        raise error(f"{name} must be positive", got=value)
    return Budget("bits", number, f"{bits[1]}bits") if bits else Budget("bytes", number, text.replace(" ", ""))


@dataclass(frozen=True)
class SensitivityConfig(Options):
    """The options of a sensitivity study that a run lacks: `steps` are steps, or the words all, first and last.

    Raises OptionError.
    """

    steps: tuple[int | str, ...] = option(
        ("all",), "Checkpoints of each run.", STEP, many=True, metavar="STEP,…|first,last|all"
    )
    by: Literal["layer", "part"] = option(
        "layer",
        "Quantize one layer at a time, or one part: embedding, head, attention and MLP.",
        choices=("layer", "part"),
    )
    draws: int = option(2, "Labels drawn per calibration window.", low=1)
    seed: int = option(0, "Seed of those labels.", low=0)

    budget: tuple[Budget, ...] = option(
        (),
        "Choose a format among --bits and --formats for each layer, such that all take at most so many bits per "
        "quantized weight (3.5bits), or all weights so many bytes (60MB); uniform: what each format alone takes.",
        Kind(_budget, "SIZE"),
        many=True,
        metavar="SIZE,…",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget and self.by == "part":
            raise OptionError("--budget needs the damage of layers", got="--by part", remedy="omit --by")
        if not self.steps:
            raise OptionError("--steps names no checkpoint", allowed=f"steps, {', '.join(STEP_WORDS)}")
