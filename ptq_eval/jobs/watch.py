"""A run that is still training: every checkpoint is measured when it is complete, and D_crit forecast anew.

    discover → unchanged for a while? → verify → one job at a time → fit, report → alerts

What is measured is stored as by `ptq_eval.run`, with the same options, so a watch that was stopped goes on where it
was, an output folder of `run` is continued, and a checkpoint that is deleted after it was measured stays in the
results.  Nothing that happens to one checkpoint ends the watch: it is reported, and the next look comes.  A request
that can never be met, such as a text that does not exist, ends it when the first checkpoint is complete.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ptq_eval.checkpoints import Overrides, discover, gravest, verify_all
from ptq_eval.checkpoints.arrivals import Arrivals, Files, files_of, is_temporary
from ptq_eval.checkpoints.verify import Known
from ptq_eval.config.options import declared
from ptq_eval.config.run import RunConfig
from ptq_eval.config.watch import END, WatchConfig, refuse_meaningless
from ptq_eval.errors import (
    EmptyFolderError,
    NoCheckpointError,
    NothingToFitError,
    OptionError,
    OutputFullError,
    OutputMismatchError,
    PtqEvalError,
)
from ptq_eval.jobs.events import Delayed, Event, Measured, Started, Unmeasured, Waiting
from ptq_eval.jobs.grid import Grid, Job
from ptq_eval.jobs.machine import runs
from ptq_eval.jobs.run import analyse, default_output, save_report
from ptq_eval.jobs.spent import Spent
from ptq_eval.laws.turning.alerts import Alert, alerts
from ptq_eval.measure.trials import quantizers_of
from ptq_eval.records import Checkpoint, Progress
from ptq_eval.report import fit_of
from ptq_eval.results.load import Results

LAST_TRIES = 3
"""Looks that may fail after training has ended, before the watch ends with their error."""


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

    `options` are the fields of `WatchConfig`, `RunConfig` and `Overrides`.  The folders need not exist yet.  Raises the
    PtqEvalError of a wrong request, before the first look.
    """
    overrides = Overrides.take(options, overrides)
    if overrides.checkpoint_count is not None:
        what, got = "a watch measures every checkpoint", f"--checkpoints {overrides.checkpoint_count}"
        raise OptionError(what, got=got, remedy="omit it: --budget bounds what measuring may cost")
    refuse_meaningless(options)
    own = {name: options.pop(name) for name in declared(WatchConfig) if name in options}
    watching = WatchConfig.of(own)
    config = RunConfig.of(options, also=[*declared(Overrides), *declared(WatchConfig)])
    quantizers_of(config)
    config.resolve_device()
    roots = [folders] if isinstance(folders, (str, Path)) else list(folders)
    for root in roots:
        if Path(root).is_file() or not str(root).strip():
            discover([root])  # says what is wrong with it
    place = Path(out) if out is not None else default_output(roots[0])
    grid = Grid(place, config, progress or (lambda what, done, total: None), growing=True)
    return _Watch(roots, overrides, watching, grid).events(sleep)


class _WrongRequestError(Exception):
    """Carries the error of a request that no later look could meet, so that it ends the watch."""


class _Watch:
    def __init__(
        self,
        roots: Sequence[str | Path],
        overrides: Overrides,
        watching: WatchConfig,
        grid: Grid,
    ) -> None:
        self.roots, self.overrides, self.watching, self.grid = roots, overrides, watching, grid
        self.arrivals = Arrivals(0.0 if watching.once else watching.settle, 0.0 if watching.once else watching.patience)
        self.spent = Spent(grid.config.resolve_device())
        self._known: Known = {}
        self._seen: list[tuple[Checkpoint, Files]] = []
        self._changing = self._damaged = 0
        self._jobs: list[Job] = []
        self._tried: dict[str, Files] = {}
        self._unreported: list[tuple[Checkpoint, float]] = []
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
            except _WrongRequestError as wrong:
                raise wrong.args[0] from None
            except (PtqEvalError, OSError) as error:
                busy, failures = False, failures + 1
                yield from self._delayed(error, over, failures)
            if busy:
                continue
            now = Waiting(len(self._seen), self._changing + self._damaged, len(self._jobs))
            if now != said and not failures:
                said = now
                yield now
            if over and not failures and not self._jobs:
                return
            sleep(self.watching.every)

    def _delayed(self, error: PtqEvalError | OSError, over: bool, failures: int) -> Iterator[Event]:
        """Say once what is wrong; after training, raise it in the end: on a full disk after `patience`."""
        problem = error if isinstance(error, PtqEvalError) else PtqEvalError("a file cannot be read", got=error)
        waited = failures * self.watching.every
        patient = isinstance(error, OutputFullError) and waited < self.watching.patience
        if self.watching.once or (over and failures >= LAST_TRIES and not patient):
            raise problem from None
        if self._new("delayed", str(problem)):
            yield Delayed(problem)

    def _over(self) -> bool:
        """Whether this look is the last that finds anything new."""
        pid = self.watching.pid
        return self.watching.once or (Path(self.roots[0]) / END).exists() or (pid is not None and not runs(pid))

    def _look(self, over: bool) -> Iterator[Event]:
        """Take what is complete, measure one checkpoint of it, and report."""
        found = self._found()
        named = [checkpoint for checkpoint in found if not is_temporary(checkpoint)]
        still = named if over else self.arrivals.still(named)
        self._changing = len(found) - len(still)
        seen = [(checkpoint, files_of(checkpoint)) for checkpoint in still]
        changed = seen != self._seen or self._damaged > 0
        if changed:
            yield from self._take(still, named, over)
        if job := self._next(seen, over):
            yield from self._measured(job)
        if self.grid.info and (changed or self._unreported):
            yield from self._report()
        self._seen = seen  # last, so that the next look repeats what an error has prevented

    def _found(self) -> list[Checkpoint]:
        """The checkpoints below the roots; a root without any is waited for, and does not hold up the others.

        Roots whose folders have the same name are waited for together: how their runs are named depends on all.
        """
        try:
            return discover(self.roots, overrides=self.overrides)
        except (EmptyFolderError, NoCheckpointError):
            ready = [root for root in self.roots if _has_checkpoint(root)]
            distinct = len({Path(root).name for root in self.roots}) == len(self.roots)
            if self.watching.once or not ready or not distinct:
                raise
            return discover(ready, overrides=self.overrides)

    def _take(self, still: Sequence[Checkpoint], found: Sequence[Checkpoint], over: bool) -> Iterator[Event]:
        """Verify checkpoints that do not change, and plan the trials of the sound ones of all that are `found`."""
        verified = verify_all(
            still,
            progress=lambda done, total, _name: self.grid.progress("reading weights", done, total),
            trust_remote_code=self.grid.config.trust_remote_code,
            known=self._known,
        )
        verified = [c for c in verified if files_of(c) or c.location.startswith("hub:")]  # deleted meanwhile
        wrong = self.grid.contradictions(verified) | {c.location: gravest(c) for c in verified if c.fatal}
        sound = [checkpoint for checkpoint in verified if checkpoint.location not in wrong]
        if sound:
            self._plan(sound, found)
            wrong |= {checkpoint.location: error for checkpoint, error in self.grid.plan.excluded}
        self._jobs = [job for job in self.grid.jobs() if self._is_untried(job)] if sound else []
        faulty = [(checkpoint, error) for checkpoint in verified if (error := wrong.get(checkpoint.location))]
        given_up = [(c, error) for c, error in faulty if over or self.arrivals.given_up(c)]
        self._damaged = len(faulty) - len(given_up)
        for checkpoint, error in given_up:
            if self._new(checkpoint.location, str(error)):
                yield Unmeasured(checkpoint, error)

    def _plan(self, sound: Sequence[Checkpoint], found: Sequence[Checkpoint]) -> None:
        """Plan the trials of sound checkpoints; those that the plan excludes are no error while a run grows."""
        try:
            self.grid.take(sound, self.roots, waiting=found)
        except PtqEvalError as error:
            if not self.watching.once and len(self.grid.plan.excluded) == len(sound):
                return
            if self.grid.info or isinstance(error, OutputFullError):
                raise
            raise _WrongRequestError(error) from error

    def _is_untried(self, job: Job) -> bool:
        """Whether a checkpoint has changed since trials of it failed."""
        location = job.work.checkpoint.location
        return self._tried.get(location) != files_of(job.work.checkpoint)

    def _next(self, seen: Sequence[tuple[Checkpoint, Files]], over: bool) -> Job | None:
        """The job of the newest checkpoint, or else the first; none that would exceed the budget."""
        if not self._jobs or not (over or self.spent.allows(self.watching.budget)):
            return None
        newest = max(seen, key=lambda one: max((changed for *_, changed in one[1]), default=0))[0]
        return next((job for job in self._jobs if job.work.checkpoint.location == newest.location), self._jobs[0])

    def _measured(self, job: Job) -> Iterator[Event]:
        """Measure a checkpoint.

        A failure is not repeated until the checkpoint's files change: nothing else would make it succeed.
        """
        yield Started(job.work.checkpoint)
        with self.spent.measuring():
            started = time.monotonic()
            files = files_of(job.work.checkpoint)
            problems = self.grid.measure([job])
            self._jobs.remove(job)
            self._tried[job.work.checkpoint.location] = files
        if problems:
            yield Unmeasured(job.work.checkpoint, problems[0])
        else:
            self._unreported.append((job.work.checkpoint, time.monotonic() - started))

    def _report(self) -> Iterator[Event]:
        """Fit and report, unless the report of an earlier look is of the same measurements."""
        config, started = self.grid.config, time.monotonic()
        settings = {"laws": config.laws, "seed": config.seed, "bootstrap": config.bootstrap}
        with self.spent:
            try:
                results = self.grid.results()
                if not self._unreported and _is_reported(results):
                    return
                result = analyse(results, progress=self.grid.progress, **settings)
            except NothingToFitError:
                return
            save_report(self.grid.store.folder, result)
        seconds = time.monotonic() - started
        done, self._unreported = self._unreported, []
        for checkpoint, measuring in done:
            yield Measured(checkpoint, result, measuring + seconds, self.spent.seconds)
        yield from self._alerts(alerts(result.fit["critical_tokens"], self.watching.margin, self.watching.alert_bits))

    def _alerts(self, found: Sequence[Alert]) -> Iterator[Event]:
        """Those that neither this watch nor an earlier one has raised."""
        raised = self.grid.store.read_alerts()
        for alert in found:
            if alert.place not in raised and self._new("alert", alert.place):
                yield alert
                raised.add(alert.place)
                with suppress(OutputFullError):  # a watch that is repeated raises it again
                    self.grid.store.write_alerts(raised)

    def _new(self, about: Any, what: Any) -> bool:
        """Whether this is said for the first time."""
        if (about, what) in self._said:
            return False
        self._said.add((about, what))
        return True


def _has_checkpoint(root: str | Path) -> bool:
    try:
        return bool(discover([root]))
    except (EmptyFolderError, NoCheckpointError):
        return False


def _is_reported(results: Results) -> bool:
    """Whether the folder's report is of these measurements."""
    try:
        return fit_of(results) is not None
    except OutputMismatchError:  # a damaged file is written again
        return False
