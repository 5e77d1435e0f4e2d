"""A run as an array of SLURM tasks: `submit("runs/my-model", "out", partition="gpu", gpus=1)`.

    plan → OUT/slurm/N/: a file for each job, two scripts → sbatch → tasks measure → a last one reports

The folder N holds all that a task reads.  What is outstanding follows from those plans, the records and SLURM's queue
alone, so `retry` needs neither the checkpoints' folders nor the options again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ptq_eval.checkpoints import Overrides
from ptq_eval.config.cluster import RemoteConfig, SlurmConfig
from ptq_eval.config.options import declared
from ptq_eval.errors import ClusterError, NothingToFitError, OptionError, PtqEvalError, full_disk
from ptq_eval.jobs import slurm
from ptq_eval.jobs.files import read_job, write_job
from ptq_eval.jobs.job import Conditions, Job
from ptq_eval.jobs.run import planned
from ptq_eval.records import Progress
from ptq_eval.results.store import Store

_OF_ONE_CALL = ("dry_run", "retry_missing")


@dataclass(frozen=True)
class Submission:
    """What was submitted: `count` jobs whose plan, scripts and logs are in `folder`, and SLURM's numbers of both jobs.

    problems: the errors of checkpoints that cannot be measured, and of a report that was refused.
    """

    out: Path
    folder: Path | None = None
    count: int = 0
    job: str = ""
    report: str = ""
    problems: tuple[PtqEvalError, ...] = ()


def submit(
    folders: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    overrides: Overrides | Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Submission:
    """Plan what `ptq_eval.run` would measure and submit it, a task for each checkpoint.

    `options` are those of `RunConfig`, `Overrides` and `SlurmConfig`.  Raises ClusterError, OutputMismatchError while
    tasks of this folder are queued or running, and what `run` raises of a wrong request.
    """
    overrides = Overrides.take(options, overrides)
    asked = SlurmConfig.of({name: options.pop(name) for name in declared(SlurmConfig) if name in options})
    config = RemoteConfig.having(options, asked.gpus or 0, also=(*declared(Overrides), *declared(SlurmConfig)))
    if config.executor != "local":
        raise OptionError("--executor is for `ptq-eval run`", got=config.executor, remedy="omit it")
    if config.prune:
        raise OptionError("--prune is for one machine", got="--prune", remedy="omit it: tasks share the files")
    if config.jobs > 1:
        raise OptionError("--jobs is for one machine", got=config.jobs, remedy="--array-limit for tasks at one time")
    if not asked.dry_run:
        slurm.require_sbatch()
    grid = planned(folders, out, config, overrides, progress)
    with grid.store.writer():
        slurm.require_idle(grid.store.folder)
        jobs = [(job, Conditions.of(config)) for job in grid.jobs()]
        report = ["--seed", str(config.seed), "--bootstrap", str(config.bootstrap)]
        found = _submitted(grid.store, jobs, asked, report)
    return replace(found, problems=(*(error for _, error in grid.plan.excluded), *found.problems))


def retry(out: str | Path, **options: Any) -> Submission:
    """Submit what earlier submissions have not measured, and that is neither queued nor running.

    `options` are those of `SlurmConfig`; what is None is as in the last submission.  Raises NothingToFitError if
    nothing was ever submitted for this folder, ClusterError, and OutputMismatchError.
    """
    given = SlurmConfig.of(options)
    store = Store(out)
    earlier = slurm.submissions(store.folder)
    if not earlier:
        raise NothingToFitError(
            "nothing was submitted for this folder",
            got=out,
            allowed="the output folder of `ptq-eval submit`",
            remedy="ptq-eval submit FOLDER -o OUT",
        )
    if not given.dry_run:
        slurm.require_sbatch()
    last = json.loads((earlier[-1] / slurm.PLAN).read_text(encoding="utf-8"))
    known = {name: value for name, value in last["options"].items() if name not in _OF_ONE_CALL}
    asked = SlurmConfig.of(
        {**known, **{name: value for name, value in asdict(given).items() if value not in (None, {})}}
    )
    index, _, count = last["shard"].partition("/")
    store = Store(out, (int(index), int(count)))
    with store.writer():
        return _submitted(store, _outstanding(store, earlier), asked, last["report"])


def _outstanding(store: Store, earlier: Sequence[Path]) -> list[tuple[Job, Conditions]]:
    """The jobs of all plans without the trials that are stored, or that a task which is queued or running has."""
    taken = store.keys()
    tasks = slurm.live(earlier) if slurm.installed() else {}
    open_jobs = []
    for folder in earlier:
        busy = tasks.get(slurm.job_name(folder), set())
        for path in sorted(folder.glob("[0-9]*.json")):
            job, conditions = read_job(path)
            if int(path.stem) in busy:
                taken |= {trial.key() for trial in job.missing}
            else:
                open_jobs.append((job, conditions))
    found = []
    for job, conditions in open_jobs:
        missing = tuple(trial for trial in job.missing if trial.key() not in taken)
        taken |= {trial.key() for trial in missing}
        found += [(replace(job, missing=missing), conditions)] if missing else []
    return found


def _submitted(
    store: Store, jobs: Sequence[tuple[Job, Conditions]], asked: SlurmConfig, report: Sequence[str]
) -> Submission:
    """Write the plan and the scripts of these jobs, and submit them."""
    if not jobs:
        return Submission(store.folder)
    root = store.folder / "slurm"
    with full_disk(store.folder):
        root.mkdir(exist_ok=True)
        number = 1 + max((int(path.name) for path in root.iterdir() if path.name.isdigit()), default=0)
        folder = root / str(number)
        folder.mkdir()
        for place, (job, conditions) in enumerate(jobs):
            write_job(folder, place, job, conditions)
    slurm.write_scripts(folder, store.folder, store.shard, len(jobs), asked, report)
    found = Submission(store.folder, folder, len(jobs))
    _write(found, store.shard, asked, report)
    if asked.dry_run:
        return found
    found = replace(found, job=slurm.submit(folder / slurm.ARRAY))
    _write(found, store.shard, asked, report)
    try:
        found = replace(found, report=slurm.submit(folder / slurm.REPORT, after=found.job))
    except ClusterError as error:
        remedy = f"once they have ended: ptq-eval report {store.folder}"
        refused = ClusterError("the checkpoints are submitted, the report is refused", got=error.got, remedy=remedy)
        return replace(found, problems=(refused,))
    _write(found, store.shard, asked, report)
    return found


def _write(found: Submission, shard: str, asked: SlurmConfig, report: Sequence[str]) -> None:
    assert found.folder is not None
    content = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "job": found.job,
        "report_job": found.report,
        "count": found.count,
        "shard": shard,
        "options": asdict(asked),
        "report": list(report),
    }
    with full_disk(found.out):
        (found.folder / slurm.PLAN).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
