"""What a process that measures jobs does, and how it answers; `ptq-eval work` runs it, `jobs.pool` starts it.

The records of a process are in a file of its own, `OUT/records/worker-…-NAME.jsonl`.  It answers with JSON objects:
{"tick": units of work} now and then, and at the end of a job {"done": its file, "error": null or an object}.  Trials
that another process has measured meanwhile are not measured again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from ptq_eval.backends.worker import end_with
from ptq_eval.backends.workers import Workers
from ptq_eval.errors import PtqEvalError
from ptq_eval.jobs.files import error_to_dict, read_job
from ptq_eval.jobs.job import measure
from ptq_eval.results.store import Store

_TICK_SECONDS = 0.2
_NEEDED = ("transformers.modeling_utils", "transformers.models.auto.modeling_auto")
"""What loading any model imports."""

Say = Callable[[dict[str, Any]], object]


def work(files: Iterable[str], out: Path, shard: tuple[int, int], name: str, say: Say) -> None:
    """Measure the jobs of these files one after another; all answers go to `say`."""
    end_with(os.getppid())
    for package in _NEEDED:  # while the driver plans
        import_module(package)
    store = Store(out, shard, name)
    with ExitStack() as held:
        writer = None
        for path in files:
            writer = writer or held.enter_context(store.writer())  # no file for a process without a job
            job, conditions = read_job(Path(path))
            done = store.keys()
            missing = tuple(trial for trial in job.missing if trial.key() not in done)
            ticks = _Ticks(say)
            try:
                with Workers(conditions.limits) as workers:
                    error = measure(replace(job, missing=missing), conditions, writer, workers, ticks)
            except PtqEvalError as problem:  # no space is left
                error = problem
            ticks.send()
            say({"done": path, "error": error_to_dict(error) if error else None})


class _Ticks:
    """Adds up units of work, and passes them on every so often."""

    def __init__(self, say: Say) -> None:
        self._say, self._units, self._last = say, 0.0, time.monotonic()

    def __call__(self, amount: float) -> None:
        self._units += amount
        if time.monotonic() - self._last > _TICK_SECONDS:
            self.send()

    def send(self) -> None:
        self._say({"tick": self._units})
        self._units, self._last = 0.0, time.monotonic()
