"""How much memory there is, and how the model and its variants share it.

Three things may limit a process on a CPU: what the system has left, the control groups that the process belongs to (as
in containers and batch systems), and the resource limits of the process itself (`ulimit -v` and `-d`); the smallest of
them counts.  Nothing here changes a result: less memory only means more groups of variants, or weights that are read
from disk instead of kept.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SHARE_FOR_WEIGHTS = 0.8
"""Share of the free memory that weights take by default; the rest is for activations."""

_MOST_BY_DEFAULT = 4.0
_MIN_DEFAULT = 2**30
"""What is taken by default on a CPU: so many times the weights in float32, or so many bytes where that is more."""

_SHARE_KEPT = 0.05
"""Share of the free memory that may stay unused in the process between one activation and the next."""

_MOST_KEPT = 2**30

_NO_LIMIT = float("inf")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST_FROM_HEAP = 2**25
"""From glibc's malloc.h; the last is the largest threshold that it accepts."""


def free_memory(device: str) -> float:
    """Bytes that are free on a device now; on a CPU what can be had without swapping."""
    if device.startswith("cuda"):
        import torch

        # What torch keeps cached after an earlier model is as good as free.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + kept)
    return max(0.0, min(_of_the_system(), _of_the_control_group(), _of_the_process()))


@dataclass(frozen=True)
class Budget:
    """Memory for weights: `total` bytes for the model and its variants together, equal parts on each of `devices`."""

    total: float
    devices: int = 1

    @property
    def each(self) -> float:
        """Bytes on one device."""
        return self.total / self.devices

    @classmethod
    def of(cls, device: str, limit: int | None, params: int | None = None) -> Budget:
        """`limit` bytes, or by default a share of what is free now, before the model is loaded.

        On a CPU, where memory is shared with other programs, that is at most a multiple of the weights of `params`
        parameters in float32, where these are given.
        """
        if limit is not None:
            return cls(float(limit))
        most = _NO_LIMIT
        if params is not None and device == "cpu":
            most = max(_MIN_DEFAULT, _MOST_BY_DEFAULT * 4 * params)
        return cls(min(_SHARE_FOR_WEIGHTS * free_memory(device), most))

    @classmethod
    def of_several(cls, devices: Sequence[str]) -> Budget:
        """A share of what is free now on each of several devices, as much on each as on the fullest of them."""
        return cls(len(devices) * _SHARE_FOR_WEIGHTS * min(map(free_memory, devices)), len(devices))

    def holds(self, model_bytes: float) -> bool:
        """Whether the model fits together with one variant, which is at most as large."""
        return 2 * model_bytes <= self.total

    def variants(self, model_bytes: float, variant_bytes: float) -> int:
        """How many variants fit beside the model; at least one."""
        return max(1, int((self.total - model_bytes) // variant_bytes))


def keep_freed_memory() -> None:
    """Let the C library keep memory that was freed, a share of what is free now, instead of returning it at once.

    For the whole process, so only an application may call it, before its work: the command line does, the package's
    functions never do.  A forward pass on a CPU frees and asks for the same few megabytes at every layer.  By default
    glibc returns them each time and the system clears every page anew, which takes up to half of the time of a small
    model's pass.  All threads share what is kept: with a store for each, the chunks of a calibration pass
    (`paused_forward`) take a tenth more time and memory.  Does nothing with another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_FROM_HEAP)
        mallopt(_M_TRIM_THRESHOLD, int(min(_SHARE_KEPT * free_memory("cpu"), _MOST_KEPT)))
        mallopt(_M_ARENA_MAX, 1)


def return_freed_memory() -> None:
    """Give the system all that the C library keeps free, holes between what is in use included.

    Passes leave more and more of them behind: without this, two passes back of 135 M parameters hold twice the memory
    of one.  Costs the time of clearing those pages anew, so it is for the end of a stage, or of a pass that takes much.
    Does nothing with a C library other than glibc.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch has a class for that on a GPU, and only a message on a CPU."""
    named = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
    return named or any(words in str(error) for words in ("can't allocate memory", "Cannot allocate memory"))


def gpus(device: str) -> list[str]:
    """The GPUs over which a model may be shared out: all that can be seen, unless `device` names one of them."""
    import torch

    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] if device == "cuda" else []


def _of_the_system() -> float:
    try:
        return _field("/proc/meminfo", "MemAvailable")
    except (OSError, KeyError):
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / 2


def _of_the_control_group(own: Path = Path("/proc/self/cgroup"), cgroups: Path = Path("/sys/fs/cgroup"), /) -> float:
    """The least that the process's control group and its ancestors leave, by version 1 or 2, whichever is in use.

    A batch system often limits a job and runs each step in a group below it that has no limit.  Groups that cannot be
    seen, as from within a container, do not count; the container's root counts for them.
    """
    try:
        lines = own.read_text(encoding="ascii").splitlines()
    except OSError:
        return _NO_LIMIT
    free = _NO_LIMIT
    for _, kinds, path in (line.split(":", 2) for line in lines):
        if kinds == "":
            names, root = ("memory.max", "memory.current"), cgroups
        elif "memory" in kinds.split(","):
            names, root = ("memory.limit_in_bytes", "memory.usage_in_bytes"), cgroups / "memory"
        else:
            continue
        inner = root / path.lstrip("/")
        for folder in (inner, *inner.parents):
            free = min(free, _left(folder, *names))
            if folder == root:
                break
    return free


def _left(folder: Path, limit: str, used: str) -> float:
    """Limit minus use; the system counts pages of files as used, although it drops them on demand."""
    try:
        most, now = (float((folder / name).read_text(encoding="ascii")) for name in (limit, used))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):  # no such group, or no limit: "max"
        return _NO_LIMIT
    # Groups below count in version 1 only where a field says total.
    return most - now + float(stat.get("total_inactive_file", stat.get("inactive_file", 0)))


def _of_the_process() -> float:
    """What the limits of address space and private data leave; maps of the weights' files count in both."""
    try:
        import resource

        fields = {resource.RLIMIT_AS: "VmSize", resource.RLIMIT_DATA: "VmData"}
        limits = {field: resource.getrlimit(kind)[0] for kind, field in fields.items()}
        bounded = {field: limit for field, limit in limits.items() if limit != resource.RLIM_INFINITY}
        return min((limit - _field("/proc/self/status", field) for field, limit in bounded.items()), default=_NO_LIMIT)
    except (ImportError, OSError, KeyError, AttributeError):
        return _NO_LIMIT


def _field(path: str, name: str) -> float:
    """A field of kilobytes in one of the system's tables, in bytes."""
    with open(path, encoding="ascii") as handle:
        fields = dict(line.split(":", 1) for line in handle)
    return float(fields[name].split()[0]) * 1024
