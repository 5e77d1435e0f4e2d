"""What all benchmarks share: claims, times taken by turns, and the facts about the machine that a number belongs to."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent
SEED = 0


@dataclass(frozen=True)
class Setup:
    """How to measure: `quick` rehearses on small sizes; `trajectory` is the folder of trained checkpoints; `texts` are
    those to measure on, where a benchmark takes any (empty: its own); `minutes` is how long a training lasts, `layers`
    and `windows` are the size of the model and of its texts, `kills` how often a run is killed (None: the benchmark's
    own)."""

    trajectory: Path
    quick: bool = False
    texts: tuple[str, ...] = ()
    minutes: float | None = None
    layers: int | None = None
    windows: int | None = None
    kills: int | None = None


@dataclass(frozen=True)
class Claim:
    """A measured `value` with the smallest and largest of its repetitions, held to `limit` (None: only reported)."""

    what: str
    value: float
    low: float
    high: float
    limit: float | None = None
    sense: Literal["at least", "at most"] = "at most"
    unit: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the value keeps to the limit; None without a limit."""
        if self.limit is None:
            return None
        return self.value >= self.limit if self.sense == "at least" else self.value <= self.limit

    def to_dict(self) -> dict[str, Any]:
        """A JSON object, the verdict included."""
        return {**asdict(self), "met": self.met}


@dataclass
class Outcome:
    """The claims of a benchmark, everything behind them as plain values, and matplotlib figures by file name."""

    claims: list[Claim] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Seconds:
    """Wall time, and CPU time of this process over all its threads."""

    wall: float
    cpu: float


def clock(task: Callable[[], object]) -> Seconds:
    """The time one call takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    task()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def by_turns(
    first: Callable[[], object], second: Callable[[], object], repeats: int, *, warm_up: bool = True
) -> list[tuple[Seconds, Seconds]]:
    """Times of both, `repeats` pairs, after a call of each that is not counted; who goes first alternates."""
    if warm_up:
        first()
        second()
    pairs = []
    for turn in range(repeats):
        if turn % 2:
            late = clock(second)
            pairs.append((clock(first), late))
        else:
            pairs.append((clock(first), clock(second)))
    return pairs


def claim_of(what: str, values: Sequence[float], **limits: Any) -> Claim:
    """The median of `values` with their range."""
    return Claim(what, statistics.median(values), min(values), max(values), **limits)


def cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def environment() -> dict[str, Any]:
    """The machine, the versions and the state of the sources that a number was measured with."""
    import torch

    names = ("ptq-eval", "torch", "transformers", "numpy", "tokenizers")
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "processor": _processor(),
        "machine": platform.machine(),
        "system": platform.platform(),
        "cores_used": len(cores()),
        "cores_present": os.cpu_count(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": len(_git("status", "--porcelain", "--", "ptq_eval", "quantizers", "benchmarks").splitlines()),
        "seed": SEED,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as handle:
            return next(line.split(":", 1)[1].strip() for line in handle if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()
