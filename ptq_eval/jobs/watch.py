"""A run that is still training: every checkpoint is measured when it is complete, and D_crit forecast anew.

    discover → unchanged for a while? → verify → one job at a time → fit, report → alerts

What is measured is stored as by `ptq_eval.run`, with the same options, so a watch that was stopped goes on where it
was, an output folder of `run` is continued, and a checkpoint that is deleted after it was measured stays in the
results.  Nothing that happens to one checkpoint ends the watch: it is reported, and the next look comes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ptq_eval.api import RunResult, analyse, default_output, save_report
from ptq_eval.checkpoints import Overrides, discover, gravest, verify_all
from ptq_eval.checkpoints.arrivals import Arrivals, Files, files_of
from ptq_eval.checkpoints.verify import Known
from ptq_eval.config.options import declared
from ptq_eval.config.run import RunConfig
from ptq_eval.config.watch import END, WatchConfig
from ptq_eval.errors import EmptyFolderError, NoCheckpointError, OutputFullError, PtqEvalError
from ptq_eval.jobs.grid import Grid, Job
from ptq_eval.laws.turning.alerts import Alert, alerts
from ptq_eval.measure.trials import quantizers_of
from ptq_eval.records import Checkpoint, Progress

LAST_TRIES = 3
"""Looks that may fail after training has ended, before the watch ends with their error."""


@dataclass(frozen=True)
class Started:
    """A checkpoint is being measured."""

    checkpoint: Checkpoint


@dataclass(frozen=True)
class Measured:
    """A checkpoint was measured in so many `seconds`; `result` is that of all checkpoints so far."""

    checkpoint: Checkpoint
    result: RunResult
    seconds: float


@dataclass(frozen=True)
class Unmeasured:
    """A checkpoint cannot be measured; it is tried again when its files change."""

    checkpoint: Checkpoint
    error: PtqEvalError


@dataclass(frozen=True)
class Delayed:
    """Nothing could be done at this look, because of the `error`; the next one tries again."""

    error: PtqEvalError


@dataclass(frozen=True)
class Waiting:
    """Nothing is left to measure at present; `checkpoints` are known, and these wait for their files or the budget."""

    checkpoints: int
    incomplete: int
    beyond_budget: int


Event: TypeAlias = Started | Measured | Unmeasured | Delayed | Waiting | Alert


def watch(
    folders: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    overrides: Overrides | Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    sleep: Callable[[float], object] = time.sleep,
    **options: Any,
) -> Iterator[Event]:
    """Measure checkpoints under `folders` as they appear; an iterator of what happens, which ends as `END` says.

    `options` are those of `WatchConfig`, `RunConfig` and `Overrides`.  The folders need not exist yet.  Raises the
    PtqEvalError of a wrong request, before the first look.
    """
    overrides = Overrides.take(options, overrides)
    own = {name: options.pop(name) for name in declared(WatchConfig) if name in options}
    watching = WatchConfig.of(own)
    config = RunConfig.of(options, also=[*declared(Overrides), *declared(WatchConfig)])
    quantizers_of(config)
    config.resolve_device()
    roots = [folders] if isinstance(folders, (str, Path)) else list(folders)
    place = Path(out) if out is not None else default_output(roots[0])
    watched = _Watch(roots, place, overrides, config, watching, progress or (lambda what, done, total: None))
    return watched.events(sleep)


class _Watch:
    def __init__(
        self,
        roots: Sequence[str | Path],
        out: Path,
        overrides: Overrides,
        config: RunConfig,
        watching: WatchConfig,
        progress: Progress,
    ) -> None:
        self.roots, self.overrides, self.config, self.watching = roots, overrides, config, watching
        self.progress = progress
        self.grid = Grid(out, config, progress, growing=True)
        self.arrivals = Arrivals(0.0 if watching.once else watching.settle, 0.0 if watching.once else watching.patience)
        self.spent = _Spent(config.resolve_device())
        self.incomplete = self.beyond = self._damaged = 0
        self._known: Known = {}
        self._seen: list[tuple[Checkpoint, Files]] = []
        self._jobs: list[Job] = []
        self._said: set[tuple[Any, Any]] = set()

    def events(self, sleep: Callable[[float], object]) -> Iterator[Event]:
        said, failures = None, 0
        while True:
            over, busy = self._over(), False
            try:
                for event in self._look(over):
                    busy = True
                    yield event
                failures = 0
            except (EmptyFolderError, NoCheckpointError):  # nothing is saved yet, or all was deleted
                if self.watching.once:
                    raise
                self._seen, self._jobs, busy = [], [], False
            except (PtqEvalError, OSError) as error:
                busy, failures = False, failures + 1
                yield from self._delayed(error, last=self.watching.once or (over and failures == LAST_TRIES))
            if busy:
                continue
            now = Waiting(len(self._seen), self.incomplete, self.beyond)
            if now != said:
                said = now
                yield now
            if over and not failures and not self._jobs:
                return
            sleep(self.watching.every)

    def _delayed(self, error: PtqEvalError | OSError, last: bool) -> Iterator[Event]:
        """Say once what is wrong, or raise it at the `last` look; space on a disk is waited for even then."""
        problem = error if isinstance(error, PtqEvalError) else PtqEvalError("a file cannot be read", got=error)
        if last and (self.watching.once or not isinstance(error, OutputFullError)):
            raise problem from None
        if self._new("delayed", str(problem)):
            yield Delayed(problem)

    def _over(self) -> bool:
        """Whether this look is the last that finds anything new."""
        pid = self.watching.pid
        return self.watching.once or (Path(self.roots[0]) / END).exists() or (pid is not None and not _runs(pid))

    def _look(self, over: bool) -> Iterator[Event]:
        """Take what is complete, and measure one checkpoint of it."""
        found = discover(self.roots, overrides=self.overrides)
        still = found if over else self.arrivals.still(found)
        seen = [(checkpoint, files_of(checkpoint)) for checkpoint in still]
        if seen != self._seen or self._damaged:
            yield from self._take(still, over)
            self._seen = seen
        self.incomplete = len(found) - len(still) + self._damaged
        yield from self._measured(over)

    def _take(self, still: Sequence[Checkpoint], over: bool) -> Iterator[Event]:
        """Verify checkpoints that do not change, and plan the trials of the sound ones."""
        verified = verify_all(
            still,
            progress=lambda done, total, _name: self.progress("reading weights", done, total),
            trust_remote_code=self.config.trust_remote_code,
            known=self._known,
        )
        verified = [c for c in verified if files_of(c) or c.location.startswith("hub:")]  # deleted meanwhile
        complete = [checkpoint for checkpoint in verified if over or self.arrivals.complete(checkpoint)]
        self._damaged = len(verified) - len(complete)
        wrong = {c.location: gravest(c) if c.fatal else self.grid.contradiction(c) for c in complete}
        sound = [checkpoint for checkpoint in complete if wrong[checkpoint.location] is None]
        if sound:
            self.grid.take(sound, self.roots)
            wrong |= {checkpoint.location: error for checkpoint, error in self.grid.plan.excluded}
        self._jobs = self.grid.jobs() if sound else []
        for checkpoint in complete:
            error = wrong[checkpoint.location]
            if error is not None and self._new(checkpoint.location, str(error)):
                yield Unmeasured(checkpoint, error)

    def _measured(self, over: bool) -> Iterator[Event]:
        """Measure the newest checkpoint if it waits, or else the first that does, unless that exceeds the budget."""
        self.beyond = 0
        if not self._jobs:
            return
        newest = max(self._seen, key=lambda one: max((changed for *_, changed in one[1]), default=0))[0]
        job = next((job for job in self._jobs if job.work.checkpoint.location == newest.location), self._jobs[0])
        if not over and not self.spent.allows(self.watching.budget):
            self.beyond = len(self._jobs)
            return
        yield Started(job.work.checkpoint)
        with self.spent:
            started = time.monotonic()
            problems = self.grid.measure([job])
            self._jobs.remove(job)
            if problems:
                yield Unmeasured(job.work.checkpoint, problems[0])
                return
            settings = {"laws": self.config.laws, "seed": self.config.seed, "bootstrap": self.config.bootstrap}
            result = analyse(self.grid.results(), progress=self.progress, **settings)
            save_report(self.grid.store.folder, result)
        yield Measured(job.work.checkpoint, result, time.monotonic() - started)
        for alert in alerts(result.fit["critical_tokens"], self.watching.margin, self.watching.alert_bits):
            if self._new(alert.place, True):
                yield alert

    def _new(self, about: Any, what: Any) -> bool:
        """Whether this is said for the first time."""
        if (about, what) in self._said:
            return False
        self._said.add((about, what))
        return True


def _runs(pid: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


class _Spent:
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
        times = os.times()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return sum(times[:4]) / cores if self._on_cpu else 0.0

    def __enter__(self) -> None:
        self._entered = self._now() if self._on_cpu else time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._last = (self._now() if self._on_cpu else time.monotonic()) - self._entered
        self._total += self._last

    def allows(self, budget: float) -> bool:
        """Whether another measurement, as long as the last one, keeps the share since the beginning below `budget`."""
        return budget >= 1 or self._total + self._last <= budget * (time.monotonic() - self._began)
