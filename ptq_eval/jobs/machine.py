"""What jobs must know of the machine: its cores, how a process is held to some of them, whether a process runs."""

from __future__ import annotations

import os

import psutil

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
"""Environment variables that say how many threads a process may have."""


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def runs(pid: int) -> bool:
    """Whether there is a process of this number that has not ended; one may have, and its parent not know yet."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
