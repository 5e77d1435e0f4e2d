"""A run on a machine that is not its own: beside busy processes, and beside a second run.

The competing load is made here: processes that compute without pause, each on one thread, and, as the shards of one
study would be, another run of the same command.  A run with t threads beside k busy threads on c cores is owed
t/(t + k) of them; alone on as many cores as it has threads, its fair time is (t + k)/c times the time alone.  The
limit is twice that.  Each setting runs with what the command line sets for its own process (`ptq_eval.cli.process`)
and with the threading library's defaults, by turns.  Alone, the former must cost no more than 5 %.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.harness import ROOT, Claim, Outcome, Setup, claim_of
from benchmarks.subjects import demo_command
from ptq_eval.cli.process import OPENMP

LIMIT_SHARE, LIMIT_ALONE = 2.0, 1.05
SPINNING = {"GOMP_SPINCOUNT": "300000"}
"""What libgomp does unless it is asked for something else."""
SPIN = "while True: pass"


@dataclass(frozen=True)
class Run:
    """One process: the load beside it, the setting of its waiting threads, wall time and CPU time in seconds."""

    beside: str
    setting: str
    wall: float
    cpu: float


def measure(setup: Setup) -> Outcome:
    """Times of a run alone, beside 1 and 3 busy threads, and beside a second run."""
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    loads = {"nothing": 0, "1 busy process": 1, "3 busy processes": 3, "a second run": threads}
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(1 if setup.quick else 2):
            for beside, busy in loads.items():
                if repeat and busy == 3:
                    continue  # the slowest, and far from its limit's edge
                for setting, values in (("own", {}), ("default", SPINNING)):
                    out = Path(folder) / f"{beside}-{setting}-{repeat}"
                    with _load(beside, busy, setup, values, out.with_name(f"{out.name}-other")):
                        runs.append(Run(beside, setting, *_run(setup, values, out)))
    outcome = Outcome(details={"threads": threads, "cores": cores, "openmp": OPENMP, "runs": [asdict(r) for r in runs]})
    own, default = (_walls(runs, "nothing", setting) for setting in ("own", "default"))
    outcome.claims.append(
        claim_of(
            "alone, time with the command line's setting / with the library's default",
            [a / b for a, b in zip(own, default)],
            limit=LIMIT_ALONE,
        )
    )
    for beside, busy in list(loads.items())[1:]:
        fair = (threads + busy) / cores
        for setting, limit in (("own", LIMIT_SHARE), ("default", None)):
            what = f"beside {beside}, time / fair time" + ("" if setting == "own" else ", the library's default")
            outcome.claims.append(_claim(what, _walls(runs, beside, setting), fair, own, limit))
    return outcome


def _claim(what: str, walls: list[float], fair: float, alone: list[float], limit: float | None) -> Claim:
    return claim_of(what, [wall / (fair * min(alone)) for wall in walls], limit=limit)


def _walls(runs: list[Run], beside: str, setting: str) -> list[float]:
    return [run.wall for run in runs if run.beside == beside and run.setting == setting]


@contextmanager
def _load(beside: str, busy: int, setup: Setup, values: dict[str, str], out: Path) -> Iterator[None]:
    """Keep the competing processes running."""
    second = beside == "a second run"
    commands = [_command(setup, out)] if second else [[sys.executable, "-c", SPIN]] * busy
    environment = {**os.environ, **values}
    others = [subprocess.Popen(each, cwd=ROOT, env=environment, **_silent()) for each in commands]
    try:
        if others:
            time.sleep(1.0)
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def _silent() -> dict[str, int]:
    return {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def _command(setup: Setup, out: Path) -> list[str]:
    """The demo's command for the smallest run of the trajectory at one bit-width."""
    words = demo_command()
    place = words.index("run") + 1
    runs = [folder for folder in setup.trajectory.iterdir() if folder.is_dir()]
    smallest = min(runs, key=lambda run: sum(file.stat().st_size for file in run.rglob("*.safetensors")))
    options = [*words[place + 1 :], "--bits", "3", "-o", str(out)]
    return [sys.executable, "-m", "ptq_eval", *words[:place], str(smallest), *options]


def _run(setup: Setup, values: dict[str, str], out: Path) -> tuple[float, float]:
    """Wall time and CPU time of one process, in seconds.  Raises if it fails."""
    wall = time.perf_counter()
    process = subprocess.Popen(_command(setup, out), cwd=ROOT, env={**os.environ, **values}, **_silent())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, "ptq-eval run")
    return time.perf_counter() - wall, usage.ru_utime + usage.ru_stime
