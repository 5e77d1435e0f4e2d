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

from ptq_eval.api import analyse, default_output, save_report
from ptq_eval.checkpoints import Overrides, discover, gravest, verify_all
from ptq_eval.checkpoints.arrivals import Arrivals, Files, files_of, is_temporary
from ptq_eval.checkpoints.verify import Known
from ptq_eval.config.options import declared
from ptq_eval.config.run import RunConfig
from ptq_eval.config.watch import END, WatchConfig
from ptq_eval.errors import (
    EmptyFolderError,
    NoCheckpointError,
    NothingToFitError,
    OutputFullError,
    PtqEvalError,
)
from ptq_eval.jobs.events import Delayed, Event, Measured, Started, Unmeasured, Waiting
from ptq_eval.jobs.grid import Grid, Job
from ptq_eval.jobs.machine import runs
from ptq_eval.jobs.spent import Spent
from ptq_eval.laws.turning.alerts import alerts
from ptq_eval.measure.trials import quantizers_of
from ptq_eval.records import Checkpoint, Progress

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
    for root in roots:
        if Path(root).is_file() or not str(root).strip():
            discover([root])  # says what is wrong with it
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
        self.spent = Spent(config.resolve_device())
        self.incomplete = self.beyond = self._damaged = 0
        self._known: Known = {}
        self._seen: list[tuple[Checkpoint, Files]] = []
        self._jobs: list[Job] = []
        self._tried: dict[str, Files] = {}
        self._unreported: list[tuple[Checkpoint, float]] = []
        self._accepted = self._stale = False
        self._tokens: dict[Any, Any] = {}
        self._wrong_request = False
        self._alerted = self.grid.store.read_alerts()
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
                if self._wrong_request:
                    raise
                busy, failures = False, failures + 1
                yield from self._delayed(error, over, failures)
            if busy:
                continue
            now = Waiting(len(self._seen), self.incomplete, self.beyond)
            if now != said:
                said = now
                yield now
            if over and not failures and not (self._jobs or self._unreported or self._stale):
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
        """Take what is complete, and measure one checkpoint of it."""
        found = self._found()
        named = [checkpoint for checkpoint in found if not is_temporary(checkpoint)]
        still = named if over else self.arrivals.still(named)
        seen = [(checkpoint, files_of(checkpoint)) for checkpoint in still]
        if seen != self._seen or self._damaged:
            yield from self._take(still, [checkpoint.location for checkpoint in named], over)
            self._seen = seen
        self.incomplete = len(found) - len(still) + self._damaged
        yield from self._measured(over)
        yield from self._report()

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

    def _take(self, still: Sequence[Checkpoint], found: Sequence[str], over: bool) -> Iterator[Event]:
        """Verify checkpoints that do not change, and plan the trials of the sound ones; `found`: all locations."""
        verified = verify_all(
            still,
            progress=lambda done, total, _name: self.progress("reading weights", done, total),
            trust_remote_code=self.config.trust_remote_code,
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

    def _plan(self, sound: Sequence[Checkpoint], found: Sequence[str]) -> None:
        """Plan the trials of sound checkpoints; those that the plan excludes are no error while a run grows."""
        if not self._accepted:  # an earlier watch may have been killed before it wrote a report, or knew another D
            self._stale = not _report_is_current(self.grid.store.folder)
            self._tokens = _tokens(self.grid.store.read_run() or {})
        try:
            self.grid.take(sound, self.roots, waiting=found)
        except PtqEvalError as error:
            if not self.watching.once and len(self.grid.plan.excluded) == len(sound):
                return
            self._wrong_request = not self._accepted and not isinstance(error, OutputFullError)
            raise
        known = _tokens(self.grid.info)
        self._stale |= any(known.get(place, tokens) != tokens for place, tokens in self._tokens.items())
        self._accepted, self._tokens = True, known

    def _is_untried(self, job: Job) -> bool:
        """Whether a checkpoint has changed since trials of it failed."""
        location = job.work.checkpoint.location
        return self._tried.get(location) != files_of(job.work.checkpoint)

    def _measured(self, over: bool) -> Iterator[Event]:
        """Measure the newest checkpoint if it waits, or else the first that does, unless that exceeds the budget.

        A failure is not repeated until the checkpoint's files change: nothing else would make it succeed.
        """
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
            files = files_of(job.work.checkpoint)
            problems = self.grid.measure([job])
            self._jobs.remove(job)
            self._tried[job.work.checkpoint.location] = files
        if problems:
            yield Unmeasured(job.work.checkpoint, problems[0])
        else:
            self._unreported.append((job.work.checkpoint, time.monotonic() - started))

    def _report(self) -> Iterator[Event]:
        """Fit and report once something was measured, or D of a checkpoint has become known.

        What a full disk keeps from being reported is reported at a later look.
        """
        if not self._accepted or not (self._unreported or self._stale):
            return
        settings = {"laws": self.config.laws, "seed": self.config.seed, "bootstrap": self.config.bootstrap}
        started = time.monotonic()
        with self.spent:
            try:
                result = analyse(self.grid.results(), progress=self.progress, **settings)
            except NothingToFitError:
                self._stale = False
                return
            save_report(self.grid.store.folder, result)
        seconds = time.monotonic() - started
        done, self._unreported, self._stale = self._unreported, [], False
        for checkpoint, measuring in done:
            yield Measured(checkpoint, result, measuring + seconds)
        for alert in alerts(result.fit["critical_tokens"], self.watching.margin, self.watching.alert_bits):
            if alert.place not in self._alerted:
                yield alert
                self._alerted.add(alert.place)
                with suppress(OutputFullError):  # a watch that is repeated raises it again
                    self.grid.store.write_alerts(self._alerted)

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


def _tokens(info: Mapping[str, Any]) -> dict[tuple[Any, ...], Any]:
    """D by place of a checkpoint, from `run.json`."""
    return {(c["run"], c["step"], c["revision"]): c["tokens"] for c in info.get("checkpoints", ())}


def _report_is_current(out: Path) -> bool:
    """Whether there is a report, and no record is younger."""
    try:
        reported = (out / "report.md").stat().st_mtime
        return all(path.stat().st_mtime <= reported for path in (out / "records").glob("*.jsonl"))
    except OSError:
        return False
