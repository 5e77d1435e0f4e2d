"""Starting a driver: a job out, a result back, from whichever environment the side lives in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT
from benchmarks.peers.environments import PEERS, python_of

OURS = "ours"


@dataclass(frozen=True)
class Cell:
    """One model under one method: what a driver loads and quantizes anew.  `weights` names a file to write them to."""

    method: str
    bits: int
    group_size: int
    symmetric: bool
    weights: str | None = None


def run_driver(
    side: str,
    folder: Path,
    calibration: Path,
    cells: Sequence[Cell],
    *,
    threads: int,
    timeout: float = 3600,
    **also: Any,
) -> dict[str, Any] | None:
    """The result of a side's driver on a checkpoint folder (see `driver`); None if it cannot run, after one line.

    `side` is the name of a peer, or "ours".  `also` is added to the job.
    """
    python = Path(sys.executable) if side == OURS else python_of(side)
    if python is None:
        return None
    module, variables = (OURS, ()) if side == OURS else (PEERS[side].module, PEERS[side].variables)
    job = {
        "model": str(folder),
        "calibration": str(calibration),
        "cells": [asdict(cell) for cell in cells],
        "threads": threads,
        **also,
    }
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "job.json").write_text(json.dumps(job), encoding="utf-8")
        result = Path(home) / "result.json"
        command = [str(python), "-m", "benchmarks.peers.driver", module, str(Path(home) / "job.json"), str(result)]
        environment = {
            **os.environ,
            **dict(variables),
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(threads),
        }
        problem = _start(command, Path(home), environment, timeout)
        if result.exists():
            return _told(side, json.loads(result.read_text(encoding="utf-8")))
    print(f"{side}: left out, its driver failed ({problem})", file=sys.stderr)
    return None


def _start(command: list[str], home: Path, environment: dict[str, str], timeout: float) -> str:
    """Run a driver in its folder; the last line it wrote, which says why if it failed."""
    with open(home / "log", "w+", encoding="utf-8", errors="replace") as log:
        try:
            subprocess.run(command, cwd=home, env=environment, stdout=log, stderr=log, timeout=timeout, check=False)
        except subprocess.TimeoutExpired:
            return f"no result within {timeout:.0f} s"
        log.seek(0)
        lines = [line.strip() for line in log if line.strip()]
    if os.environ.get("PTQ_EVAL_BENCH_VERBOSE"):
        print("\n".join(lines[-60:]), file=sys.stderr)
    return lines[-1][:300] if lines else "no output"


def _told(side: str, result: dict[str, Any]) -> dict[str, Any]:
    for cell in result["cells"]:
        if "error" in cell:
            print(f"{side}: no {cell['method']} at {cell['bits']} bits ({cell['error'][:200]})", file=sys.stderr)
    return result
