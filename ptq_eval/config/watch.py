"""The options of `ptq-eval watch` that a run lacks: when to look, what measuring may cost, and when to alert."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ptq_eval.config.options import BITS, COUNT, TEXT, Options, option
from ptq_eval.errors import OptionError

END = ".training-ended"
"""A file of this name in the first folder ends a watch once all there is measured, whatever the budget."""

MEANINGLESS = ("jobs", "prune")
"""Options of a run that a watch lacks: it measures one checkpoint at a time."""


def refuse_meaningless(options: Mapping[str, Any]) -> None:
    """Raises OptionError where an option is one of a run alone."""
    for name in MEANINGLESS:
        if name in options:
            got = f"{name}={options[name]}"
            raise OptionError("a watch measures one checkpoint at a time", got=got, remedy="omit it")


@dataclass(frozen=True)
class WatchConfig(Options):
    """How a run that is still training is watched.  Raises OptionError."""

    every: float = option(30.0, "Seconds between two looks at FOLDERS.", above=0, high=86400)
    settle: float = option(
        10.0, "A checkpoint is measured once its files have not changed for so many seconds.", low=0, high=86400
    )
    patience: float = option(
        600.0, "One that is damaged or incomplete is reported after so many seconds without a change.", low=0, high=1e7
    )
    budget: float = option(
        1.0,
        "Largest share of the machine's time that measuring may take: of its CPU time, or of time on a GPU. "
        "Checkpoints that would exceed it wait, the newest goes first.",
        above=0,
        high=1,
        metavar="SHARE",
    )
    margin: float = option(
        1.5, "Alert if the interval of D_crit begins before X times the present D.", above=0, high=1e6
    )
    alert_bits: tuple[float, ...] = option((), "Alert at these bit-widths alone.", BITS, many=True, metavar="B,…")
    alert_command: str | None = option(
        None, "A command to run at each alert, with the sentence as last argument and JSON on standard input.", TEXT
    )
    pid: int | None = option(
        None, "Number of the training process: once it has ended, measure what is left, and end.", COUNT, low=1
    )
    once: bool = option(False, "Measure what is complete now, and end.")
