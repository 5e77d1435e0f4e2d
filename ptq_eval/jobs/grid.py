"""All measurements of one output folder: which checkpoints are to be measured, which trials are missing, and the store.

    verified checkpoints → plan → jobs → measured here, or in other processes → store

Whatever stops a run, what was measured stays in the store, and a grid with the same options goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ptq_eval.backends.workers import Workers
from ptq_eval.checkpoints import foremost
from ptq_eval.config.run import RunConfig
from ptq_eval.errors import OutputMismatchError, PtqEvalError
from ptq_eval.jobs import slurm
from ptq_eval.jobs.job import Conditions, Job, measure
from ptq_eval.jobs.on_ray import on_ray
from ptq_eval.jobs.pool import Pool, in_processes
from ptq_eval.jobs.prefetch import Near, Prefetch
from ptq_eval.measure.estimate import Estimate, estimate
from ptq_eval.measure.sweep import cost
from ptq_eval.measure.texts import Texts
from ptq_eval.measure.trials import Plan, make_plan
from ptq_eval.records import Checkpoint, Progress
from ptq_eval.results.load import Results, collect
from ptq_eval.results.manifest import (
    describe,
    entry_of,
    merged,
    require_matching,
    require_same,
    require_same_weights,
    weights_of,
)
from ptq_eval.results.store import Store


class Grid:
    """The measurements that `config` asks for, stored below `out`.

    growing: of runs that are still training, all of whose earlier checkpoints may have been deleted.
    With `prune` the checkpoints are taken a few at a time, and this worker's share of them is chosen before.
    Raises OutputMismatchError if what is stored there is damaged.
    """

    def __init__(self, out: str | Path, config: RunConfig, progress: Progress, *, growing: bool = False) -> None:
        self.config, self.progress, self._growing = config, progress, growing
        self.store = Store(out, config.shard)
        self.plan = Plan()
        self.info: dict[str, Any] = {}
        self._in_parts = config.prune
        self._planned: dict[str, list[str]] = {}
        self._texts = Texts(config, progress)
        self._started = time.time()
        self.store.read_run()  # refuses a damaged folder before any work

    def take(
        self, checkpoints: Sequence[Checkpoint], roots: Sequence[str | Path], waiting: Collection[Checkpoint] = ()
    ) -> None:
        """Plan the trials of these checkpoints, found below `roots` and verified, and write `run.json`.

        waiting: checkpoints that are there but not to be measured now; what was measured of them is kept.
        Raises the PtqEvalError of whatever is wrong with the request, the gravest of the checkpoints if none can be
        measured, and OutputMismatchError if the folder holds results of another request.
        """
        self.plan = Plan()
        whole = replace(self.config, shard=(1, 1)) if self._in_parts else self.config
        self.plan = plan = make_plan(checkpoints, whole, self.progress, self._texts if self._in_parts else None)
        if len(plan.excluded) == len(checkpoints):
            raise foremost([error for _, error in plan.excluded], "which `ptq-eval inspect` lists")
        info = describe(self.config, plan.checkpoints, plan, self._started)
        for name in ("notes", "warnings") if self._in_parts else ():
            info[name] = list(dict.fromkeys([*self.info.get(name, []), *info[name]]))
        old = self.store.read_run()  # another process may have written it since
        if old is not None:
            require_same(old, info, self.store.folder, growing=self._growing, waiting=waiting)
            info = merged(old, info, roots, waiting)
        else:
            require_matching(self.store.measurements(), plan, self.store.folder)
        self.store.write_run(info)
        planned = {work.checkpoint.name: [t.key() for t in work.trials] for work in plan.workloads}
        self._planned = {**(self._planned if self._in_parts else {}), **planned}
        self.store.write_plan(self._planned)
        self.info = info

    def estimates(self, checkpoints: Sequence[Checkpoint]) -> list[Estimate]:
        """What the missing trials of these checkpoints would take; nothing is written.

        One checkpoint speaks for others with as many parameters and the same missing trials.  Raises the PtqEvalError
        of whatever is wrong with the request.
        """
        self.plan = make_plan(checkpoints, self.config, self.progress, None)
        if len(self.plan.excluded) == len(checkpoints):
            raise foremost([error for _, error in self.plan.excluded], "which `ptq-eval inspect` lists")
        conditions, jobs = Conditions.of(self.config), self.jobs()
        options: dict[str, Any] = {
            name: getattr(conditions, name) for name in ("device", "memory", "trust_remote_code")
        }
        alike: dict[Any, Estimate] = {}
        found = []
        for number, job in enumerate(jobs):
            self.progress("estimating", number, len(jobs))
            work = job.work
            kinds = tuple(replace(t, checkpoint=jobs[0].work.checkpoint).key() for t in job.missing)
            kind = (work.checkpoint.params_total, kinds)
            if kind not in alike:
                alike[kind] = estimate(work, job.missing, **options)
            found.append(replace(alike[kind], checkpoint=work.checkpoint.name))
        return found

    def add(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Add checkpoints that cannot be measured to `run.json`."""
        now = {**(self.store.read_run() or self.info)}
        self.info = merged(now, {**now, "checkpoints": [entry_of(checkpoint) for checkpoint in checkpoints]}, ())
        self.store.write_run(self.info)

    def contradictions(self, checkpoints: Sequence[Checkpoint]) -> dict[str, PtqEvalError]:
        """By location, the errors of checkpoints that were measured with other weights."""
        stored, found = weights_of(self.store.read_run() or {}), {}
        for checkpoint in checkpoints:
            try:
                require_same_weights(stored, checkpoint.to_dict(), self.store.folder)
            except OutputMismatchError as error:
                found[checkpoint.location] = error
        return found

    def jobs(self) -> list[Job]:
        """The checkpoints with missing trials, in the order of the plan."""
        return self._outstanding([Job(work, work.trials) for work in self.plan.workloads])

    def _outstanding(self, jobs: Sequence[Job]) -> list[Job]:
        """These jobs without the trials that are stored by now."""
        done = self.store.keys()
        found = [Job(job.work, tuple(trial for trial in job.missing if trial.key() not in done)) for job in jobs]
        return [job for job in found if job.missing]

    def measure(self, jobs: Sequence[Job], ready: Pool | None = None) -> list[PtqEvalError]:
        """Run every missing trial of these jobs; the errors of checkpoints that could not be measured.

        ready: processes that have begun (see `pool.ahead`).

        Raises OutputFullError: going on would lose what is measured.
        """
        total, units, doing = sum(cost(job.work, job.missing) for job in jobs), 0.0, "measuring"

        def tick(amount: float) -> None:
            nonlocal units
            units += amount
            self.progress(doing, units, total)

        def say(stage: str) -> None:
            nonlocal doing
            doing = f"measuring: {stage}"
            tick(0.0)

        self.progress("measuring", 0.0, total)
        conditions = Conditions.of(self.config)
        slurm.require_idle(self.store.folder)
        with self.store.writer() as writer:
            jobs = self._outstanding(jobs)  # another process may have measured some before it let go of the file
            executor, _, address = self.config.executor.partition(":")
            if executor == "ray" and jobs:
                found = on_ray(jobs, conditions, self.store, writer, address, tick)
            elif self.config.jobs > 1 and len(jobs) > 1:
                found = in_processes(jobs, conditions, self.store, writer, self.config.jobs, tick, ready)
            else:
                found = []
                with Workers(conditions.limits) as workers, Prefetch(conditions.memory) as prefetch:
                    for job, following in zip_longest(jobs, jobs[1:]):
                        prefetch.begin(Near.folder(following.work.folder) if following else Near())
                        found.append(measure(job, conditions, writer, workers, tick, say))
        self.info["seconds"] = time.time() - self._started
        now = self.store.read_run() or self.info  # another process may have added checkpoints
        self.store.write_run({**now, "seconds": self.info["seconds"]})
        return [error for error in found if error is not None]

    def results(self) -> Results:
        """What is stored, as `results.load` gives it."""
        return collect(self.store, self.info)
