"""How much of a machine's time the measurements of a watch have taken."""

from __future__ import annotations

import os
import time

from ptq_eval.jobs.machine import cores


class Spent:
    """What a watch took of the machine's time: its CPU seconds over the cores, or seconds of a GPU that it has.

    `measuring` is a context around a measurement, the object itself one around the report on it.
    """

    def __init__(self, device: str) -> None:
        self._on_cpu = device == "cpu"
        self._began = time.monotonic()
        self._on_gpu = 0.0
        self._last = self.seconds  # on a CPU, the start of the process
        self._entered = 0.0

    @property
    def seconds(self) -> float:
        """What was taken so far."""
        return sum(os.times()[:4]) / cores() if self._on_cpu else self._on_gpu

    def measuring(self) -> Spent:
        """A context around a measurement; reports that follow count as part of it."""
        self._last = 0.0
        return self

    def __enter__(self) -> None:
        self._entered = self._clock()

    def __exit__(self, *_: object) -> None:
        taken = self._clock() - self._entered
        self._last += taken
        self._on_gpu += 0.0 if self._on_cpu else taken

    def _clock(self) -> float:
        return self.seconds if self._on_cpu else time.monotonic()

    def allows(self, budget: float) -> bool:
        """Whether another measurement with its report, as long as the last ones, keeps the share below `budget`."""
        return budget >= 1 or self.seconds + self._last <= budget * (time.monotonic() - self._began)
