"""The command line of the benchmarks: which to run, on how many cores, and where the results go."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

NAMES = (
    "codes",
    "delta",
    "sweep",
    "demo",
    "bootstrap",
    "solver",
    "throughput",
    "early_stop",
    "memory",
    "scaling",
    "methods",
    "grid",
)


def main() -> int:
    """Run the benchmarks asked for; 1 if a claim is not met."""
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--only", action="append", choices=NAMES, help="run this one (may be repeated)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: results/benchmarks)")
    parser.add_argument("--trajectory", type=Path, default=root / "examples" / "trajectory")
    parser.add_argument("--cores", type=int, default=2, help="cores to use, for this process and those it starts")
    parser.add_argument("--quick", action="store_true", help="a rehearsal on small sizes, kept apart")
    chosen = parser.parse_args()
    use_cores(chosen.cores)

    from benchmarks.harness import Setup, environment
    from benchmarks.report import save, write_page

    rehearsal = Path(tempfile.gettempdir()) / "ptq-eval-benchmarks"
    out = chosen.out or (rehearsal if chosen.quick else root / "results" / "benchmarks")
    setup = Setup(chosen.trajectory, chosen.quick)
    missed = 0
    for name in chosen.only or NAMES:
        started, facts = time.perf_counter(), environment()
        outcome = import_module(f"benchmarks.{name}").measure(setup)
        command = shlex.join(["python", "-m", "benchmarks", "--only", name, *(["--quick"] if chosen.quick else [])])
        save(out, name, command, outcome, facts, time.perf_counter() - started)
        missed += sum(claim.met is False for claim in outcome.claims)
    print(write_page(out, NAMES))
    return 1 if missed else 0


def use_cores(count: int) -> None:
    """Keep to `count` of the cores this process may use; to be called before torch is imported."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    os.environ.setdefault("OMP_NUM_THREADS", str(count))


if __name__ == "__main__":
    sys.exit(main())
