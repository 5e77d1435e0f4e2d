"""How much of a machine's time the measurements of a watch have taken."""

from __future__ import annotations

import os
import time

from ptq_eval.jobs.machine import cores


class Spent:
    """What measuring took of the machine's time: CPU seconds over its cores, or seconds of a GPU that it has.

    Used as a context around each measurement.
    """

    def __init__(self, device: str) -> None:
        self._on_cpu = device == "cpu"
        self._began = time.monotonic()
        self._total = self._now()  # the start of the process counts
        self._last = self._total
        self._entered = 0.0

    def _now(self) -> float:
        return sum(os.times()[:4]) / cores() if self._on_cpu else 0.0

    def __enter__(self) -> None:
        self._entered = self._now() if self._on_cpu else time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._last = (self._now() if self._on_cpu else time.monotonic()) - self._entered
        self._total += self._last

    @property
    def seconds(self) -> float:
        """What was taken so far."""
        return self._total

    def allows(self, budget: float) -> bool:
        """Whether another measurement, as long as the last one, keeps the share since the beginning below `budget`."""
        return budget >= 1 or self._total + self._last <= budget * (time.monotonic() - self._began)
