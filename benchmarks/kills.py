"""A sweep of 135 M parameters that is killed at random moments and begun again: what that repeats, and what it changes.

`ptq-eval run` measures the model of `real_size`, once undisturbed and once with SIGKILL at moments drawn evenly over
the processor time of the first run.  What a kill costs is the processor time of the next process from its taking over
what was kept until it keeps something new: that repeats what was lost and finishes the part that was interrupted, so it
is an upper bound of the work repeated.  Starting (imports, hashes of weights, the plan) is counted apart.  Processor
time, because on a machine that is shared wall time says little; give it one thread (`--cores 1`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.harness import ROOT, SEED, Claim, Outcome, Setup, claim_of
from benchmarks.real_size import BITS, GROUP, QUANTIZERS, QUICK_SHAPE, SHAPE
from benchmarks.subjects import random_llama

KILLS, WINDOWS = 20, 2
MOST_REPEATED = 60.0
_POLL = 0.1


@dataclass
class Attempt:
    """One process: its processor seconds when it took over what was kept, when it kept something new, and at its end.

    None: it did not come to that.
    """

    taken_over: float | None = None
    new: float | None = None
    last: float | None = None
    end: float = 0.0
    killed: bool = False

    @property
    def repeated(self) -> float:
        """At most so many seconds repeat work of an earlier process."""
        start = self.end if self.taken_over is None else self.taken_over
        return (self.end if self.new is None else self.new) - start

    @property
    def lost(self) -> float:
        """Seconds after the last part that was kept."""
        kept = self.taken_over if self.last is None else self.last
        return 0.0 if kept is None else self.end - kept


def measure(setup: Setup) -> Outcome:
    """Undisturbed, then killed."""
    kills = setup.kills if setup.kills is not None else KILLS
    shape = {**SHAPE, **(QUICK_SHAPE if setup.quick else {})}
    shape["num_hidden_layers"] = setup.layers or shape["num_hidden_layers"]
    windows = setup.windows or WINDOWS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random_llama(folder, windows, **shape)
        whole = run(folder, folder / "whole", windows)
        assert whole.taken_over is not None, "a sweep as short as this keeps no parts: give more --windows"
        own = whole.end - whole.taken_over
        moments = np.sort(np.random.default_rng(SEED).uniform(0, own, kills))
        attempts: list[Attempt] = []
        for gap in np.diff(moments, prepend=0.0):
            attempts.append(run(folder, folder / "killed", windows, gap + (attempts[-1].lost if attempts else 0.0)))
        attempts.append(run(folder, folder / "killed", windows))
        same = records(folder / "killed") == records(folder / "whole")
    repeated = [attempt.repeated for attempt in attempts[1:]]
    starts = [attempt.taken_over for attempt in attempts if attempt.taken_over is not None]
    claims = [
        Claim("kills: seconds of work repeated, the most of a kill", max(repeated), min(repeated), max(repeated),
              MOST_REPEATED),
        claim_of("kills: seconds of work repeated, median", [float(np.median(repeated))]),
        claim_of("kills: records equal to those of the undisturbed run", [float(same)], limit=1, sense="at least"),
        claim_of("kills: seconds of starting, median", [float(np.median(starts))]),
        claim_of("kills: seconds of the sweep without starting", [own]),
    ]  # fmt: skip
    rows = [[a.taken_over, a.repeated, a.lost, a.end, a.killed] for a in attempts]
    columns = ["starting", "repeated at most", "lost", "all", "killed"]
    details = {"shape": shape, "windows": windows, "processes": {"columns": columns, "rows": rows}}
    return Outcome(claims=claims, details=details)


def run(folder: Path, out: Path, windows: int, kill_after: float | None = None) -> Attempt:
    """One process of `ptq-eval run`; killed `kill_after` processor seconds after it took over what is kept."""
    options = {
        "quantizers": ",".join(QUANTIZERS), "bits": ",".join(map(str, BITS)), "group-size": GROUP, "device": "cpu",
        "eval-text": f"{folder}/evaluation.npy#any", "calib-text": f"{folder}/calibration.npy#any",
        "eval-windows": windows, "calib-windows": windows,
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "ptq_eval", "run", str(folder / "random-llama"), "-o", str(out), *words]
    attempt, before = Attempt(), state(out)
    process = psutil.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lock_before, began = _lock(out), time.monotonic()
    while process.poll() is None:
        time.sleep(_POLL)
        try:
            attempt.end = sum(process.cpu_times()[:2])
        except psutil.Error:
            break
        if attempt.taken_over is None:
            if _lock(out) != lock_before:
                attempt.taken_over, before = attempt.end, state(out)
            continue
        if (now := state(out)) != before:
            attempt.last, before = attempt.end, now
            attempt.new = attempt.end if attempt.new is None else attempt.new
        if kill_after is not None and attempt.end - attempt.taken_over >= kill_after:
            process.kill()
            attempt.killed = True
            break
    code = process.wait()
    if not attempt.killed and code != 0:
        raise SystemExit(f"ptq-eval run ended with code {code} after {time.monotonic() - began:.0f} s")
    return attempt


def _lock(out: Path) -> int:
    """When a process last took over what is kept, ns."""
    return max((when for name, _, when in _files(out) if name.endswith("lock")), default=0)


def state(out: Path) -> list[tuple[str, int, int]]:
    """What is kept of unfinished work, and the records: files with their sizes and times."""
    return [file for file in _files(out) if "/parts/" in file[0] or "/records/" in file[0]]


def _files(out: Path) -> list[tuple[str, int, int]]:
    """Files below a folder that is being written to: path, bytes, time of the last change in ns."""
    found = []
    for folder, _, names in os.walk(out):  # unlike glob, passes over a folder that is deleted meanwhile
        for name in sorted(names):
            path = os.path.join(folder, name)
            with suppress(OSError):
                stat = os.stat(path)
                found.append((path, stat.st_size, stat.st_mtime_ns))
    return [file for file in found if not os.path.basename(file[0]).startswith(".")]


def records(out: Path) -> list[Any]:
    """What was measured, without where, when and in how many seconds, in order of its keys."""
    from ptq_eval.results.store import Store

    kept = [[m.trial.key(), m.nll, m.kl, m.agree, m.status, m.bits_per_weight, m.details] for m in
            Store(out).measurements()]  # fmt: skip
    return sorted((json.loads(json.dumps(one, default=str)) for one in kept), key=lambda one: one[0])
