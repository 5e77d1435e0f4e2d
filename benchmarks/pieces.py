"""Single functions: `test_pieces.py` by pytest-benchmark, in a process of its own, as one table.

Of its result file only the times are taken over: the rest names the host and holds every path and flag of it.  No claim
rests on these times; they are for seeing what a change of one function does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, Outcome, Setup
from benchmarks.report import LEFT_OUT

SECONDS, ROUNDS = 0.5, 5
"""Each function is called for about so long, and at least so often."""


def measure(setup: Setup) -> Outcome:
    """All of them; in a rehearsal, one of them."""
    if find_spec("pytest_benchmark") is None:
        return Outcome(details={LEFT_OUT: "pytest-benchmark is not installed"})
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "pieces.json"
        options = [f"--benchmark-json={result}", f"--benchmark-max-time={SECONDS}", f"--benchmark-min-rounds={ROUNDS}"]
        options += ["-k", "test_dequantize"] if setup.quick else []
        command = [sys.executable, "-m", "pytest", "-q", *options, str(ROOT / "benchmarks" / "test_pieces.py")]
        # Inside a parallel run of pytest, its variables would switch the timing off.
        own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError((done.stdout.strip().splitlines() or ["pytest failed"])[-1])
        found = json.loads(result.read_text(encoding="utf-8"))["benchmarks"]
    return Outcome(details={"single functions": table_of(found)})


def table_of(found: list[dict[str, Any]]) -> dict[str, Any]:
    """A row for each benchmark of pytest-benchmark's file."""
    names = ("median", "q1", "q3", "min")
    return {
        "note": "Milliseconds of one call.",
        "columns": ["function", "median", "lower quartile", "upper quartile", "least", "calls"],
        "rows": [
            [
                one["name"],
                *(1e3 * one["stats"][name] for name in names),
                one["stats"]["rounds"] * one["stats"]["iterations"],
            ]
            for one in found
        ],
    }
