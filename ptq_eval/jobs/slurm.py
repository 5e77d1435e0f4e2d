"""What is asked of SLURM: a script for an array of tasks and one for the report, sbatch to submit, squeue to look.

Nothing else: what is measured is known from the records, so SLURM may be without accounting.  The scripts are plain, so
that a user can read, change and submit them by hand; tasks are recognised by the name of their job, however they were
submitted.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ptq_eval.config.cluster import SlurmConfig
from ptq_eval.errors import ClusterError, OutputMismatchError, full_disk

ARRAY, REPORT, PLAN = "measure.sh", "report.sh", "submission.json"
_SECONDS = 60
"""For which SLURM is waited."""


def installed() -> bool:
    """Whether this machine can ask SLURM."""
    return shutil.which("squeue") is not None


def require_sbatch() -> None:
    """Raises ClusterError where this machine cannot submit jobs."""
    if shutil.which("sbatch") is None:
        raise ClusterError(
            "SLURM's sbatch is not on the PATH",
            remedy="run this on a login node (or `module load slurm`); --dry-run writes the scripts without it",
        )


def job_name(folder: Path) -> str:
    """The name of the array whose plan is in `folder` (OUT/slurm/N), distinct for each output folder."""
    out = folder.resolve().parent.parent
    plain = re.sub(r"[^A-Za-z0-9_.-]", "-", out.name)[:40]
    return f"ptq-eval-{plain}-{hashlib.sha256(os.fsencode(out)).hexdigest()[:8]}-{folder.name}"


def submissions(out: Path) -> list[Path]:
    """The folders of all submissions of an output folder, in order."""
    numbers = [int(path.parent.name) for path in (out / "slurm").glob(f"*/{PLAN}") if path.parent.name.isdigit()]
    return [out / "slurm" / str(number) for number in sorted(numbers)]


def require_idle(out: Path) -> None:
    """Raises OutputMismatchError while tasks that were submitted for `out` are queued or running."""
    tasks = live(submissions(out)) if installed() else {}
    names = ",".join(name for name, own in tasks.items() if own)
    if names:
        raise OutputMismatchError(
            "SLURM tasks that measure into this folder are queued or running",
            got=f"{sum(map(len, tasks.values()))} of {names}",
            remedy=f"wait for them, or end them: scancel --name={names}",
        )


def live(folders: Sequence[Path]) -> dict[str, set[int]]:
    """Numbers of the tasks that are queued or running, by name of their job.  Raises ClusterError."""
    names = [job_name(folder) for folder in folders]
    if not names:
        return {}
    text = _ask(["squeue", "--noheader", "--array", f"--name={','.join(names)}", "--format=%K %j"], "does not answer")
    found: dict[str, set[int]] = {name: set() for name in names}
    for line in text.splitlines():
        number, _, name = line.strip().partition(" ")
        if number.isdigit() and name in found:
            found[name].add(int(number))
    return found


def submit(script: Path, after: str = "") -> str:
    """Submit a script, to start after the end of job `after`; the number of its job.  Raises ClusterError."""
    waits = [f"--dependency=afterany:{after}"] if after else []
    answer = _ask(["sbatch", "--parsable", *waits, str(script)], "refuses the job", str(script))
    return answer.strip().splitlines()[-1].partition(";")[0]


def _ask(command: list[str], what: str, script: str = "") -> str:
    remedy = "`squeue` by hand; once SLURM answers, repeat the command"
    if script:
        remedy = f"`sinfo` lists partitions with their limits; change the options, or {script}, and submit that by hand"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except subprocess.CalledProcessError as error:
        got = _last(error.stderr) or f"exit code {error.returncode}"
        raise ClusterError(f"SLURM {what}", got=got, remedy=remedy) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ClusterError(f"SLURM {what}", got=error, remedy=remedy) from error
    return done.stdout


def _last(words: str) -> str:
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    return "; ".join(lines[-2:])


def write_scripts(folder: Path, out: Path, shard: str, count: int, asked: SlurmConfig, report: Sequence[str]) -> None:
    """Write both scripts below `folder`, for `count` jobs there; `report`: arguments of `ptq-eval report OUT`."""
    folder, out = folder.resolve(), out.resolve()
    limit = f"%{asked.array_limit}" if asked.array_limit else ""
    own = {
        "job-name": job_name(folder),
        "array": f"0-{count - 1}{limit}",
        "output": f"{folder}/%4a.log",
        "open-mode": "append",
        "requeue": "",
        "gpus": asked.gpus or None,
        "cpus-per-task": asked.cpus,
        "mem": asked.mem,
    }
    common = {
        "partition": asked.partition,
        "account": asked.account,
        "time": asked.time,
        **asked.sbatch_option,
    }
    python = shlex.join([sys.executable, "-m", "ptq_eval"])
    work = f'exec {python} work {_quoted(out)} {shard} "slurm-{folder.name}-$job" {_quoted(folder)}/"$job.json"'
    array = [
        f"# {count} checkpoints of {out}, a task each; every task writes a file of its own below records/.",
        f"# Written by `ptq-eval submit`.  After changes: sbatch {_quoted(folder / ARRAY)}",
        *_directives({**common, **own}),
        "set -eu",
        f"cd {_quoted(Path.cwd())}",
        'export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"',
        'job=$(printf %04d "$SLURM_ARRAY_TASK_ID")',
        work,
    ]
    after = [
        "# Tables, figures and pages of everything that is measured.",
        *_directives({**common, "job-name": f"{job_name(folder)}-report", "output": f"{folder}/report.log"}),
        "set -eu",
        f"cd {_quoted(Path.cwd())}",
        f"exec {python} report {_quoted(out)} {shlex.join(report)}",
    ]
    with full_disk(out):
        for name, lines in ((ARRAY, array), (REPORT, after)):
            (folder / name).write_text("\n".join(["#!/bin/bash", *lines]) + "\n", encoding="utf-8")


def _directives(options: dict[str, object]) -> list[str]:
    return [
        f"#SBATCH --{name}" + (f"={shlex.quote(str(value))}" if value != "" else "")
        for name, value in options.items()
        if value is not None
    ]


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
