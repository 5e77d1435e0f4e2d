"""Jobs in several processes of this machine, each with its share of the cores, or a GPU of its own.

A process does job after job, so that packages are imported once; the first ones do that while the jobs are planned
(`ahead`).  One that dies in a job is replaced, and the job goes to another process; a job in which `MAX_DEATHS` have
died is recorded as failed.  What a lost process had written stays.
"""

from __future__ import annotations

import json
import math
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ptq_eval.config.run import RunConfig
from ptq_eval.errors import MeasurementFailedError, OutputFullError, PtqEvalError, full_disk
from ptq_eval.jobs.files import error_from_dict, write_job
from ptq_eval.jobs.job import Conditions, Job, Tick, write_failed
from ptq_eval.jobs.machine import THREADS, cores
from ptq_eval.jobs.prefetch import Near, Prefetch
from ptq_eval.measure.memory import Budget
from ptq_eval.results.store import Store, Writer

MAX_DEATHS = 2
"""Processes that may die in one job."""
_LAST_WORDS = 300
"""Characters of what a process wrote last that are quoted."""


@contextmanager
def ahead(store: Store, config: RunConfig) -> Iterator[Pool | None]:
    """A pool whose processes import packages while the jobs are planned.

    None where no processes are asked for, where something is stored already, so that there may be nothing to do, and
    where a few checkpoints are planned at a time.
    """
    if config.jobs == 1 or config.prune or config.executor != "local" or store.files:
        yield None
        return
    with Pool(store, config.jobs, Conditions.of(config).device) as pool:
        yield pool


def in_processes(
    jobs: Sequence[Job],
    conditions: Conditions,
    store: Store,
    writer: Writer,
    count: int,
    tick: Tick,
    ready: Pool | None = None,
) -> list[PtqEvalError | None]:
    """Measure jobs in `count` processes at most, those of `ready` if so many are needed; the error of each job that
    cannot be measured, in order.

    Raises OutputFullError: going on would lose what is measured.
    """
    count = min(count, len(jobs))
    if ready is not None and ready.count > count:  # each of fewer processes has more cores
        ready.end()
        ready = None
    with nullcontext(ready) if ready is not None else Pool(store, count, conditions.device) as pool:
        shared = _shared(conditions, count)
        with full_disk(pool.folder):
            paths = [write_job(pool.folder, number, job, shared) for number, job in enumerate(jobs)]
        folders = {path: job.work.folder for path, job in zip(paths, jobs)}
        with Prefetch(conditions.memory) as prefetch:
            found = pool.run(paths, tick, lambda path: prefetch.begin(Near.folder(folders[path])))
    for job, error in zip(jobs, found):
        if isinstance(error, OutputFullError):
            raise error
        if isinstance(error, _LostError):
            write_failed(job, error, writer)
    return found


class _LostError(MeasurementFailedError):
    """Every process that measured a checkpoint died."""


def _shared(conditions: Conditions, count: int) -> Conditions:
    """The conditions of each of several processes, which share the memory unless a limit for each was asked for."""
    sharing = math.ceil(count / len(_gpus())) if conditions.device == "cuda" else count
    if conditions.memory is not None or sharing == 1:
        return conditions
    return replace(conditions, memory=int(Budget.of(conditions.device, None).total / sharing))


def _gpus() -> list[str]:
    """The GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    return os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")[:count]


@dataclass
class _Process:
    """A process with the file of the job that it is at, and what it wrote to standard error last."""

    number: int
    handle: subprocess.Popen[str]
    said: Path
    job: Path | None = None


class Pool:
    """`count` processes that measure jobs into `store`; a context that ends them."""

    def __init__(self, store: Store, count: int, device: str) -> None:
        self.store, self.count, self.device = store, count, device
        self._answers: queue.Queue[tuple[_Process, dict[str, Any] | None]] = queue.Queue()
        self._alive: list[_Process] = []
        self._waiting: deque[Path] = deque()
        self._deaths: Counter[Path] = Counter()
        self._found: dict[Path, PtqEvalError | None] = {}

    def __enter__(self) -> Pool:
        self._place = tempfile.TemporaryDirectory(prefix="ptq-eval-jobs-")
        self.folder = Path(self._place.name)
        for number in range(self.count):
            self._start(number)
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End all processes, at once where they are at a job or have had none yet."""
        for process in self._alive:
            if process.job is not None or not self._found:
                process.handle.kill()
            _close(process)
        for process in self._alive:
            process.handle.wait()
        self._alive = []
        self._place.cleanup()

    def run(
        self, paths: Sequence[Path], tick: Tick, following: Callable[[Path], None] = lambda path: None
    ) -> list[PtqEvalError | None]:
        """The error of every job, or None; after an OutputFullError, of those that are done.

        following(file): called while all processes are at work, with the job that the first to be ready will have.
        """
        self._waiting.extend(paths)
        for process in list(self._alive):
            self._give(process)
        self._say_next(following)
        while len(self._found) < len(paths):
            process, answer = self._answers.get()
            if answer is None:
                self._replace(process)
            elif "tick" in answer:
                tick(answer["tick"])
            else:
                assert process.job is not None
                error = error_from_dict(answer["error"]) if answer["error"] else None
                self._found[process.job], process.job = error, None
                if isinstance(error, OutputFullError):
                    break
                self._give(process)
                self._say_next(following)
        return [self._found.get(path) for path in paths]

    def _say_next(self, following: Callable[[Path], None]) -> None:
        if self._waiting:
            following(self._waiting[0])

    def _replace(self, process: _Process) -> None:
        """After the end of a process: its job waits again, or has failed; another process takes its place."""
        self._alive.remove(process)
        _close(process)
        if process.job is not None:
            self._deaths[process.job] += 1
            if self._deaths[process.job] < MAX_DEATHS:
                self._waiting.appendleft(process.job)
            else:
                self._found[process.job] = self._lost(process)
        if self._waiting:
            self._give(self._start(process.number))

    def _start(self, number: int) -> _Process:
        command = [
            sys.executable,
            "-m",
            "ptq_eval",
            "work",
            str(self.store.folder),
            self.store.shard,
            f"job-{number + 1}",
        ]
        said = self.folder / f"{number}.log"
        with said.open("ab") as errors:
            handle = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=self._environment(number),
            )
        process = _Process(number, handle, said)
        self._alive.append(process)
        threading.Thread(target=self._listen, args=(process,), daemon=True).start()
        return process

    def _environment(self, number: int) -> dict[str, str]:
        """Cores are shared out, unless the user has said how many threads; of several GPUs each process has one."""
        own = dict(os.environ)
        for name in THREADS:
            own.setdefault(name, str(max(1, cores() // self.count)))
        if self.device == "cuda":
            gpus = _gpus()
            own["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
        return own

    def _give(self, process: _Process) -> None:
        """Hand the next job to a process; if it is dead, `_listen` will say so."""
        if not self._waiting:
            return
        process.job = self._waiting.popleft()
        assert process.handle.stdin is not None
        with suppress(OSError):
            process.handle.stdin.write(f"{process.job}\n")
            process.handle.stdin.flush()

    def _listen(self, process: _Process) -> None:
        assert process.handle.stdout is not None
        for line in process.handle.stdout:
            with suppress(ValueError):  # half a line, of a process that was killed
                self._answers.put((process, json.loads(line)))
        process.handle.stdout.close()
        process.handle.wait()
        self._answers.put((process, None))

    def _lost(self, process: _Process) -> PtqEvalError:
        words = " ".join(process.said.read_text(encoding="utf-8", errors="replace").split())[-_LAST_WORDS:]
        code = process.handle.returncode
        return _LostError(
            f"{MAX_DEATHS} processes that measured a checkpoint died",
            got=f"exit code {code}" + (f": {words}" if words else ""),
            remedy="fewer --jobs or a smaller --memory, if memory ran out; the other checkpoints are measured",
        )


def _close(process: _Process) -> None:
    """Close the standard input of a process, which may be dead."""
    assert process.handle.stdin is not None
    with suppress(OSError):
        process.handle.stdin.close()
