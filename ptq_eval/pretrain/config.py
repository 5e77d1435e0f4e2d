"""Everything that determines the weights of a training run, checked as a whole before anything is made."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ptq_eval.errors import OptionError
from ptq_eval.pretrain.data import SMALLEST_VOCAB
from ptq_eval.pretrain.schedule import SCHEDULES, Schedule


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that determines the weights.  `ratios` are the values of D/N to save; N is non-embedding.

    Raises OptionError.
    """

    architecture: str = "llama"
    width: int = 64
    layers: int = 3
    vocab: int = 1024
    context: int = 128
    batch_size: int = 16
    ratios: tuple[float, ...] = (5, 9, 16, 28, 50, 90, 160, 240, 320, 400)
    schedule: Schedule = "constant"
    learning_rate: float = 3e-3
    warmup: int = 40
    decay: float = 0.2
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratios", tuple(sorted(set(self.ratios))))
        if not self.ratios or not all(0 < ratio < math.inf for ratio in self.ratios):
            raise OptionError("--ratios must be positive values of D/N", got=self.ratios or "none")
        if self.schedule not in SCHEDULES:
            raise OptionError("unknown --schedule", got=self.schedule, allowed=", ".join(SCHEDULES))
        for name, low in (
            ("vocab", SMALLEST_VOCAB),
            ("layers", 1),
            ("context", 2),
            ("batch_size", 1),
            ("warmup", 0),
            ("weight_decay", 0),
        ):
            value = getattr(self, name)
            if not low <= value < math.inf:
                raise OptionError(f"{_flag(name)} is too small", got=value, allowed=f"at least {low}")
        for name, high in (("learning_rate", math.inf), ("clip", math.inf), ("decay", 1.0)):
            value = getattr(self, name)
            if not 0 < value <= high or value == math.inf:
                allowed = "a positive number" + (f" up to {high:g}" if high < math.inf else "")
                raise OptionError(f"{_flag(name)} makes no sense", got=value, allowed=allowed)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
