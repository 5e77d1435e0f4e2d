"""Several checkpoints at a time: throughput of `--jobs`, and whether processes that are killed change a record.

Throughput: the demo's grid for one run, on one thread by one process, and on one thread each by as many as there are
cores; whole commands, so that the start of processes counts, and the same without what a repeated command takes, which
measures nothing (its start, reading the checkpoints, the fit and the report).  Kills: a command with two jobs, of which
a process or the driver is killed (SIGKILL) at a moment drawn at random from the time it takes; the command is then
repeated until it ends by itself, and its records compared with an undisturbed run's.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, SEED, Claim, Outcome, Setup, claim_of
from benchmarks.subjects import demo_command
from ptq_eval.jobs.machine import cores
from ptq_eval.results.store import Store

LEAST_THROUGHPUT = 1.7
KILLS = 20
"""Half of a process that measures, half of the driver."""
_COMPARED = ("nll", "n_tokens", "n_bytes", "kl", "agree", "windows", "status")
_SMALL = ("--quantizers", "rtn,gptq", "--bits", "3,4", "--eval-windows", "48", "--calib-windows", "16")


def measure(setup: Setup) -> Outcome:
    """Throughput with as many jobs as cores, and what is left of 20 killed commands."""
    count = cores()
    run = max((folder for folder in setup.trajectory.iterdir() if folder.is_dir()), key=size)
    whole = [str(run) if word.startswith("examples") else word for word in demo_command()] + ["--bootstrap", "10"]
    small = ["run", str(run), "--group-size", "16", "--bootstrap", "10", *_SMALL]
    grid = small if setup.quick else whole
    ratios, measuring, seconds = [], [], []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for repeat in range(1 if setup.quick else 3):
            one, several, rest = (
                _seconds([*grid, "--jobs", str(jobs)], folder / f"{jobs}-{repeat}") for jobs in (1, count, count)
            )
            seconds.append([one, several, rest])
            ratios.append(one / several)
            measuring.append((one - rest) / (several - rest))
        kills = _kills(small, folder, 2 if setup.quick else KILLS)
    lost = sum(not kill["identical"] for kill in kills)
    outcome = Outcome(details={"cores": count, "command": whole, "seconds": seconds, "kills": kills})
    outcome.claims = [
        claim_of(
            f"throughput of --jobs {count} over --jobs 1, one thread each",
            ratios,
            limit=LEAST_THROUGHPUT,
            sense="at least",
        ),
        claim_of("the same without what a repeated command takes", measuring, limit=LEAST_THROUGHPUT, sense="at least"),
        claim_of("time of a repeated command / --jobs 1", [rest / one for one, _, rest in seconds], sense="at most"),
        Claim(f"of {len(kills)} commands killed at random, with other records afterwards", lost, lost, lost, limit=0),
    ]
    return outcome


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def _start(command: list[str], out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "ptq_eval", *command, "-o", str(out)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _seconds(command: list[str], out: Path) -> float:
    """Wall time of a command.  Raises if it fails."""
    started = time.perf_counter()
    if code := _start(command, out).wait():
        raise subprocess.CalledProcessError(code, command)
    return time.perf_counter() - started


def records(out: Path) -> dict[str, tuple[Any, ...]]:
    return {m.trial.key(): tuple(getattr(m, name) for name in _COMPARED) for m in Store(out).measurements()}


def _kills(command: list[str], folder: Path, count: int) -> list[dict[str, Any]]:
    """Every kill: of what, when, and whether the records equal an undisturbed run's."""
    command = [*command, "--jobs", "2"]
    took, whole = _seconds(command, folder / "whole"), records(folder / "whole")
    chance, found = random.Random(SEED), []
    for number in range(count):
        out, what, moment = folder / f"killed-{number}", ("process", "driver")[number % 2], chance.uniform(0, took)
        driver = _start(command, out)
        time.sleep(moment)
        victims = children(driver.pid) if what == "process" else [driver.pid]
        for victim in victims[:1]:
            os.kill(victim, signal.SIGKILL)
        if driver.wait():
            _seconds(command, out)
        same = records(out) == whole
        found.append({"what": what, "seconds": moment, "killed": len(victims[:1]), "identical": same})
    return found


def children(parent: int) -> list[int]:
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if int((place / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(place.name))
        except (OSError, IndexError):
            continue
    return found
