"""Where the time of a sweep goes: its parts timed by wrapping their functions, each without the parts inside it.

Only what a sweep finds out about its own numbers (`CHECKS`) is timed with all that is inside.

Wrapping costs some microseconds a call, so these times serve for shares and never for the ratio itself.
"""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import ptq_eval.measure.calibration
import ptq_eval.measure.doubts
import ptq_eval.measure.evaluate
import ptq_eval.measure.floor
import ptq_eval.measure.paused_forward
import ptq_eval.measure.scoring
import ptq_eval.measure.session
import ptq_eval.measure.variants
import ptq_eval.results.store
import quantizers
from ptq_eval.models.language_model import LanguageModel
from quantizers.awq import AWQ
from quantizers.gptq import GPTQ
from quantizers.rtn import RTN

PARTS: list[tuple[str, Any, str]] = [
    ("load", ptq_eval.measure.session.LanguageModel, "load"),
    ("calibration passes", ptq_eval.measure.paused_forward, "run"),
    ("bookkeeping", ptq_eval.measure.calibration, "_solve"),
    ("statistics", quantizers.LayerStats, "from_inputs"),
    ("quantize: rtn", RTN, "quantize_grid"),
    ("quantize: gptq", GPTQ, "quantize_grid"),
    ("quantize: awq", AWQ, "quantize_grid"),
    ("dequantize", ptq_eval.measure.variants.Variant, "add"),
    ("scoring", ptq_eval.measure.evaluate.Evaluator, "score"),
    ("forward passes", LanguageModel, "logits"),
    ("forward passes", LanguageModel, "hidden"),
    ("forward passes", ptq_eval.measure.scoring.Hidden, "block"),
    ("noise floor", ptq_eval.measure.floor.Floor, "__init__"),
    ("noise floor", ptq_eval.measure.floor.Floor, "numerics"),
    ("noise floor", ptq_eval.measure.floor.Floor, "rounding"),
    ("detectors", ptq_eval.measure.doubts.Witness, "weight"),
    ("detectors", ptq_eval.measure.doubts.Plausibility, "__init__"),
    ("detectors", ptq_eval.measure.doubts.Plausibility, "ratio"),
    ("store", ptq_eval.results.store.Writer, "append"),
]
"""(part, owner, function): time within the function that is in no other part's function."""

CHECKS = ("noise floor", "detectors")
"""What is timed with all parts inside it."""

PASSES, SCORING = ("forward passes", "calibration passes"), "scoring"
"""What is no overhead: passes through the model, and what is made of their logits."""


class Breakdown:
    """Seconds by part, wall and CPU, of what is called within `watching`."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self._running: list[str] = []
        self._last = (0.0, 0.0)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Time the parts of whatever runs in this context; the rest of it is "bookkeeping"."""
        with contextlib.ExitStack() as stack:
            for part, owner, name in PARTS:
                stack.enter_context(mock.patch.object(owner, name, self._wrapped(part, owner, name)))
            self._last = (time.perf_counter(), time.process_time())
            with self._within("bookkeeping"):
                yield

    def shares(self) -> dict[str, dict[str, float]]:
        """{part: {wall, cpu, wall_share, cpu_share}}, the largest first."""
        total_wall, total_cpu = sum(self.wall.values()), sum(self.cpu.values())
        return {
            part: {
                "wall": wall,
                "cpu": self.cpu[part],
                "wall_share": wall / total_wall,
                "cpu_share": self.cpu[part] / total_cpu,
            }
            for part, wall in sorted(self.wall.items(), key=lambda item: -item[1])
        }

    def _wrapped(self, part: str, owner: Any, name: str) -> Any:
        original = inspect.getattr_static(owner, name)
        of_class = isinstance(original, classmethod)
        call: Callable[..., Any] = original.__func__ if of_class else original

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self._within(part):
                return call(*args, **kwargs)

        return classmethod(timed) if of_class else timed

    @contextlib.contextmanager
    def _within(self, part: str) -> Iterator[None]:
        self._book()
        around = self._running[-1] if self._running else part
        self._running.append(around if around in CHECKS else part)
        try:
            yield
        finally:
            self._book()
            self._running.pop()

    def _book(self) -> None:
        """Put the time since the last call on the account of the part that was running."""
        wall, cpu = time.perf_counter(), time.process_time()
        if self._running:
            part = self._running[-1]
            self.wall[part] = self.wall.get(part, 0.0) + wall - self._last[0]
            self.cpu[part] = self.cpu.get(part, 0.0) + cpu - self._last[1]
        self._last = (wall, cpu)
