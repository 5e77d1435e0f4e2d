"""How long the demo takes, and what one more bit-width adds to it: whole processes, from start to report.

The command is the one in the Makefile's demo target; each run is a fresh process with an empty output folder.  The time
per added bit-width is (t4 − t1)/3, from runs at one bit-width and at all four, taken by turns.  What a run costs before
and after measuring (start, reading, fit, figures) is seen by repeating the command on its finished output; without it,
an added bit-width cannot cost less than three quarters of the first, which are three forward passes of four.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.harness import ROOT, Outcome, Setup, claim_of
from benchmarks.subjects import demo_command

LIMIT_SECONDS = 180.0
LIMIT_ADDED = 0.5
FIRST, ALL = "2", "2,3,4,8"
BUDGET_SECONDS = 220.0
"""Repetitions go on while the next pair of runs fits in this."""


@dataclass(frozen=True)
class Run:
    """One process: its bit-widths, wall time and CPU time."""

    bits: str
    wall: float
    cpu: float


def measure(setup: Setup) -> Outcome:
    """Times of the demo at one and at four bit-widths."""
    runs: list[Run] = []
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        runs += [_run(setup, bits, Path(folder) / bits) for bits in (FIRST, ALL)]
        again = [_run(setup, bits, Path(folder) / bits) for bits in (FIRST, ALL)]
        pair = runs[0].wall + runs[1].wall
        while not setup.quick and time.perf_counter() - started + pair < BUDGET_SECONDS:
            runs += [_run(setup, bits, Path(folder) / f"{bits}-{len(runs)}") for bits in (FIRST, ALL)]
    first, last = ([run.wall for run in runs if run.bits == bits] for bits in (FIRST, ALL))
    start, end = (run.wall for run in again)
    added = [(b - a) / 3 / a for a, b in zip(first, last)]
    alone = [(b - end - a + start) / 3 / (a - start) for a, b in zip(first, last)]
    outcome = Outcome()
    outcome.claims = [
        claim_of("demo, from start to report", last, limit=LIMIT_SECONDS, unit="s"),
        claim_of("demo, time per added bit-width / time with the first", added, limit=LIMIT_ADDED),
        claim_of("the same without start, reading, fit and figures", alone),
        claim_of("demo, start, reading, fit and figures at four bit-widths", [end], unit="s"),
    ]
    outcome.details = {
        "command": ["ptq-eval", *(word.removeprefix(f"{ROOT}/") for word in _command(setup, ALL))],
        "runs": [asdict(run) for run in runs],
        "repeated_on_finished_output": [asdict(run) for run in again],
    }
    return outcome


def _command(setup: Setup, bits: str) -> list[str]:
    words = demo_command()
    place = words.index("run") + 1
    return [*words[:place], str(setup.trajectory), *words[place + 1 :], "--bits", bits]


def _run(setup: Setup, bits: str, out: Path) -> Run:
    """Run the demo at `bits` in a fresh process; its wall time and CPU time.  Raises if it fails."""
    command = [sys.executable, "-m", "ptq_eval", *_command(setup, bits), "-o", str(out)]
    before, wall = os.times(), time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - wall, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Run(bits, wall, cpu)
