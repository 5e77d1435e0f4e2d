"""The command line of the benchmarks: which to run, on how many cores, and where the results go."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.harness import Setup

NAMES = (
    "codes",
    "delta",
    "sweep",
    "demo",
    "busy",
    "bootstrap",
    "solver",
    "throughput",
    "early_stop",
    "memory",
    "scaling",
    "methods",
    "quality",
    "grid",
    "pieces",
    "structure",
    "backtest",
    "forecast",
    "turns",
    "coverage",
    "rounding",
    "gate",
    "backend_overhead",
    "jobs",
    "cluster",
    "llama_cpp",
    "page",
    "callback",
    "nanochat",
    "real_size",
    "real_loop",
    "kills",
    "prefetch",
    "stacked",
)
SIZES = ("minutes", "layers", "windows", "kills")
"""Fields of `Setup` that are options of their names."""


def main() -> int:
    """Run the benchmarks asked for; 1 if one could not be run or, with --check, if a limit is missed."""
    root = Path(__file__).resolve().parent.parent
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended from outside too, what was set up is taken down
    chosen = _arguments(root)
    use_cores(chosen.cores)

    from benchmarks.harness import Setup
    from benchmarks.report import write_page
    from ptq_eval.measure.memory import keep_freed_memory

    keep_freed_memory()  # as the command line does
    rehearsal = Path(tempfile.gettempdir()) / "ptq-eval-benchmarks"
    out = chosen.out or (rehearsal if chosen.quick else root / "results" / "benchmarks")
    sizes = {name: getattr(chosen, name) for name in SIZES}
    setup = Setup(chosen.trajectory, chosen.quick, tuple(chosen.text or ()), **sizes)
    names = chosen.only or NAMES
    failed, missed = [], []
    for place, name in enumerate(names, 1):
        _say(f"{place}/{len(names)} {name} …")
        try:
            missed += _one(name, setup, out)
        except (Exception, SystemExit) as error:  # the other benchmarks are worth having
            failed.append(name)
            _say(f"{name}: failed, {type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}")
            if os.environ.get("PTQ_EVAL_BENCH_VERBOSE"):
                traceback.print_exc()
    print(write_page(out, NAMES))
    for what in missed:
        _say(f"limit missed: {what}")
    if failed:
        _say(f"could not be run: {', '.join(failed)}")
    return 1 if failed or (chosen.check and missed) else 0


def _arguments(root: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Run the benchmarks and write results/benchmarks/.",
        epilog="Exit code: 0 if everything asked for was run, 1 if not, or if --check finds a limit that is missed.",
    )
    parser.add_argument("--only", action="append", choices=NAMES, help="run this one (may be repeated)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: results/benchmarks)")
    parser.add_argument("--trajectory", type=Path, default=root / "examples" / "trajectory")
    parser.add_argument("--text", action="append", help="a text for coverage and rounding (may be repeated)")
    parser.add_argument("--minutes", type=float, help="how long the training of callback lasts (default: 10)")
    parser.add_argument("--layers", type=int, help="layers of the model of real_size and kills (default: 30)")
    parser.add_argument("--windows", type=int, help="windows of real_size, real_loop and kills")
    parser.add_argument("--kills", type=int, help="how often kills ends a run (default: 20)")
    parser.add_argument("--cores", type=int, default=2, help="cores to use, for this process and those it starts")
    parser.add_argument("--quick", action="store_true", help="a rehearsal on small sizes, kept apart")
    parser.add_argument("--check", action="store_true", help="a missed limit makes the exit code 1")
    return parser.parse_args()


def _one(name: str, setup: Setup, out: Path) -> list[str]:
    """Measure and store; the claims that miss their limits."""
    from benchmarks.harness import environment
    from benchmarks.report import left_out, save

    started, facts = time.perf_counter(), environment()
    outcome = import_module(f"benchmarks.{name}").measure(setup)
    command = shlex.join(["python", "-m", "benchmarks", "--only", name, *_words(setup)])
    file = save(out, name, command, outcome, facts, time.perf_counter() - started)
    for reason in left_out(outcome.details):
        _say(f"{name}: left out: {reason}")
    if file.name != f"{name}.json":
        _say(f"{name}: measured less than the stored {name}.json, which stays; delete it to replace it by {file.name}")
    return [f"{name}: {claim.what}" for claim in outcome.claims if claim.met is False]


def _words(setup: Setup) -> list[str]:
    """What was asked for beside the names of the benchmarks."""
    numbers = {f"--{name}": getattr(setup, name) for name in SIZES}
    return [
        *(["--quick"] if setup.quick else []),
        *(word for text in setup.texts for word in ("--text", text)),
        *(word for flag, value in numbers.items() if value is not None for word in (flag, f"{value:g}")),
    ]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def use_cores(count: int) -> None:
    """Keep to `count` of the cores this process may use; to be called before torch is imported."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    os.environ.setdefault("OMP_NUM_THREADS", str(count))


if __name__ == "__main__":
    sys.exit(main())
