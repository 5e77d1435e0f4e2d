"""Grids killed at random moments, on this machine, a SLURM and a Ray: whether a record differs afterwards.

Victims are a process of `--jobs`, its driver, a task of SLURM (SIGKILL to its process, or scancel), a node of Ray and
the driver of Ray.  The moment is drawn from the time that an undisturbed run of the same kind takes.  What was lost is
then repeated as the documentation says, and the records are compared with those of an undisturbed run.  No time is a
result, so a busy machine will do.  SLURM and Ray must be installed (`make cluster-test` does that).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, SEED, Claim, Outcome, Setup
from benchmarks.jobs import children, records, size
from tests.support import ray_cluster, slurm
from tests.support.numbers import working

KILLS = 20
VICTIMS = ("process", "driver", "slurm task", "slurm scancel", "ray node", "ray driver")
_GRID = (
    "--quantizers", "rtn,gptq", "--bits", "3,4", "--eval-windows", "48", "--calib-windows", "16", "--group-size", "16",
    "--bootstrap", "10", "--exclude", "98,176,314,549,980,1765,3138",
)  # fmt: skip


def measure(setup: Setup) -> Outcome:
    """20 kills, by turns of all kinds."""
    run = min((folder for folder in setup.trajectory.iterdir() if folder.is_dir()), key=size)
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder = Path(place)
        bench = _Bench(folder, run, stack)
        kills = [bench.kill(n, VICTIMS[n % len(VICTIMS)]) for n in range(len(VICTIMS) if setup.quick else KILLS)]
    lost = sum(not kill["identical"] for kill in kills)
    hit = sum(kill["killed"] for kill in kills)
    outcome = Outcome(details={"grid": list(_GRID), "seconds": bench.took, "kills": kills})
    outcome.claims = [
        Claim(f"of {len(kills)} grids killed at random, with other records afterwards", lost, lost, lost, limit=0),
        Claim(f"of {len(kills)} moments, with something alive to kill", hit, hit, hit),
    ]
    return outcome


class _Bench:
    def __init__(self, folder: Path, run: Path, stack: ExitStack) -> None:
        self.folder, self.run, self.chance = folder, run, random.Random(SEED)
        self.slurm = stack.enter_context(slurm.cluster(folder / "slurm"))
        self.ray = stack.enter_context(ray_cluster.cluster())
        self.took: dict[str, float] = {}
        self.whole = records(self._undisturbed("process"))
        assert records(self._undisturbed("slurm task")) == self.whole
        assert records(self._undisturbed("ray node")) == self.whole

    def _undisturbed(self, victim: str) -> Path:
        out, started = self.folder / f"whole-{victim.partition(' ')[0]}", time.monotonic()
        self._finish(self._start(victim, out), victim, out)
        self.took[victim.partition(" ")[0]] = time.monotonic() - started
        return out

    def _start(self, victim: str, out: Path) -> subprocess.Popen[bytes]:
        own = {"slurm": ["submit", "--cpus", "1"], "ray": ["run", "--executor", f"ray:{self.ray.address}"]}
        command = own.get(victim.partition(" ")[0], ["run", "--jobs", "2"])
        return subprocess.Popen(
            [sys.executable, "-m", "ptq_eval", command[0], str(self.run), "-o", str(out), *command[1:], *_GRID],
            cwd=ROOT,
            env={**self.slurm, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _finish(self, driver: subprocess.Popen[bytes], victim: str, out: Path) -> None:
        if code := driver.wait():
            raise subprocess.CalledProcessError(code, driver.args)
        if victim.startswith("slurm"):
            slurm.wait_until_empty(self.slurm, 900)

    def kill(self, number: int, victim: str) -> dict[str, Any]:
        out = self.folder / f"killed-{number}"
        moment = self.chance.uniform(0, self.took.get(victim.partition(" ")[0], self.took["process"]))
        driver = self._start(victim, out)
        if victim.startswith("slurm"):
            driver.wait()
        time.sleep(moment)
        killed = self._act(victim, driver, out)
        code = driver.wait()
        if victim.startswith("slurm"):
            slurm.wait_until_empty(self.slurm, 900)
            retry = [sys.executable, "-m", "ptq_eval", "submit", "--retry-missing", str(out)]
            subprocess.run(retry, env=self.slurm, check=True, stdout=subprocess.DEVNULL)
            slurm.wait_until_empty(self.slurm, 900)
        elif code:
            self._finish(self._start(victim, out), victim, out)
        found, lines = records(out), sum(len(p.read_bytes().splitlines()) for p in out.glob("records/*.jsonl"))
        print(f"{number + 1} {victim} after {moment:.1f} s, killed {killed}", file=sys.stderr, flush=True)
        same = found == self.whole and lines == len(found)
        return {"what": victim, "seconds": moment, "killed": killed, "identical": same}

    def _act(self, victim: str, driver: subprocess.Popen[bytes], out: Path) -> bool:
        """Kill one of the victims that are alive; whether there was one."""
        if victim == "slurm scancel":
            tasks = [line.split()[0] for line in slurm.queue(self.slurm).splitlines() if "_" in line.split()[0]]
            subprocess.run(["scancel", *tasks[:1]], env=self.slurm, check=True) if tasks else None
            return bool(tasks)
        if victim == "ray node":
            ray_cluster.kill(self.ray)
            self.ray.add_node(num_cpus=1)
            return True
        alive = {"slurm task": lambda: working(out), "process": lambda: children(driver.pid)}
        for process in alive.get(victim, lambda: [driver.pid])()[:1]:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                return False
            return True
        return False
