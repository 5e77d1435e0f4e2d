"""Running a backend's worker: started, watched, ended, and its answers read.

Nothing that the process does harms the caller.  It has a time for each cell, and a limit on the memory of itself and
its children, looked at several times a second; a cell in which it dies is answered for it, and a new process goes on
with the next.  If it does not come as far as importing its package, all cells have that answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ptq_eval import units
from ptq_eval.backends import worker
from ptq_eval.backends.base import Cell
from ptq_eval.backends.environments import Place, home

if TYPE_CHECKING:
    import psutil

_POLL = 0.1
"""Seconds between two looks at a process."""

_LAST = 300
"""Characters of a log's last line in a message."""


@dataclass(frozen=True)
class Limits:
    """What a worker may take: seconds for each cell (its imports count with the first), and bytes of memory."""

    seconds: float = 3600.0
    memory: int | None = None


@dataclass(frozen=True)
class Answer:
    """What became of a cell: a file of weights and facts (see `worker`), or an error."""

    cell: Cell
    weights: Path | None = None
    facts: dict[str, Any] | None = None
    error: str = ""


def run(
    place: Place,
    folder: Path,
    cells: Sequence[Cell],
    layers: Mapping[str, int],
    *,
    device: str = "cpu",
    threads: int = 1,
    reload: bool = False,
    limits: Limits | None = None,
) -> Iterator[Answer]:
    """The answer to every cell, in order, each as soon as it is there.

    `layers` are the names of the layers with their columns.  `folder` holds the model and the token ids as `worker`
    describes; the answers' files are written there.
    """
    limits = limits or Limits()
    job = {
        "entry": place.entry,
        "packages": _packages(place.entry),
        "cells": [asdict(cell) for cell in cells],
        "layers": dict(layers),
        "device": device,
        "threads": threads,
        "reload": reload,
    }
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    (folder / "ready").unlink(missing_ok=True)
    done = 0
    while done < len(cells):
        with _started(place, folder, threads) as (process, log):
            reason = ""
            while done < len(cells) and not reason:
                reason = _waited(process, folder, done, limits)
                if not reason:
                    yield _answer(folder, done, cells[done])
                    done += 1
        if not reason:
            break
        reason += _last_line(log)
        kept = _kept(place.name, log)
        failed = 1 if (folder / "ready").exists() else len(cells) - done
        for cell in cells[done : done + failed]:
            (folder / f"{done}.json").write_text("{}", encoding="utf-8")
            yield Answer(cell, error=f"{reason}; log: {kept}")
            done += 1


@contextlib.contextmanager
def _started(place: Place, folder: Path, threads: int) -> Iterator[tuple[psutil.Popen, Path]]:
    """The process and its log; whatever is left of it is ended with the context."""
    import psutil

    log = folder / "log"
    environment = {
        **{name: value for name, value in os.environ.items() if place.ours or name != "PYTHONPATH"},
        **place.variables,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(threads),
        "TMPDIR": str(folder),
    }
    command = [str(place.python), "-P", worker.__file__, str(folder)]
    with open(log, "ab") as file:
        process = _opened(command, folder, environment, file)
        try:
            yield process, log
        finally:
            # A worker that has answered everything ends by itself; one that has not is not waited for.
            if not (folder / f"{_last(folder)}.json").exists():
                _end(process)
            try:
                process.wait(_GRACE)
            except psutil.TimeoutExpired:
                _end(process)


_GRACE = 10.0
"""Seconds that a worker has to end after its last answer."""


def _opened(command: list[str], folder: Path, environment: dict[str, str], log: IO[bytes]) -> psutil.Popen:
    import psutil

    return psutil.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _last(folder: Path) -> int:
    return len(json.loads((folder / "job.json").read_text(encoding="utf-8"))["cells"]) - 1


def _waited(process: psutil.Popen, folder: Path, number: int, limits: Limits) -> str:
    """Wait for the answer to cell `number`; why it will not come, or nothing."""
    end = time.monotonic() + limits.seconds
    while not (folder / f"{number}.json").exists():
        code = process.poll()
        if code is not None and not (folder / f"{number}.json").exists():
            return _ended(code)
        if time.monotonic() > end:
            return f"no answer within {limits.seconds:g} s"
        if limits.memory is not None and _memory(process) > limits.memory:
            return f"took more than {units.write(limits.memory)} bytes of memory"
        time.sleep(_POLL)
    return ""


def _ended(code: int) -> str:
    if code >= 0:
        return f"its process ended with code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
    hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"its process was killed by {name}{hint}"


def _family(process: psutil.Popen) -> list[psutil.Process]:
    import psutil

    with contextlib.suppress(psutil.Error):
        return [process, *process.children(recursive=True)]
    return []


def _memory(process: psutil.Popen) -> int:
    """Resident bytes of a process and its children."""
    import psutil

    total = 0
    for one in _family(process):
        with contextlib.suppress(psutil.Error):
            total += one.memory_info().rss
    return total


def _end(process: psutil.Popen) -> None:
    import psutil

    for one in _family(process):
        with contextlib.suppress(psutil.Error):
            one.kill()
    with contextlib.suppress(psutil.TimeoutExpired):
        process.wait(_GRACE)


def _answer(folder: Path, number: int, cell: Cell) -> Answer:
    facts = json.loads((folder / f"{number}.json").read_text(encoding="utf-8"))
    if "error" in facts:
        return Answer(cell, error=facts["error"])
    return Answer(cell, folder / f"{number}.safetensors", facts)


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f": {lines[-1][:_LAST]}" if lines else ""


def _kept(name: str, log: Path) -> Path:
    """A copy of a log that outlives the exchange, one for each backend."""
    target = home() / "logs" / f"{name}.log"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(log, target)
    except OSError:
        return log
    return target


def _packages(entry: str) -> dict[str, str]:
    """Where the worker finds the packages that it needs of ours: {top-level name: path}."""
    found = {}
    for name in {"ptq_eval", "quantizers", entry.partition(":")[0].partition(".")[0]}:
        spec = find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            found[name] = str(Path(next(iter(spec.submodule_search_locations))).resolve())
        elif spec is not None and spec.origin:
            found[name] = str(Path(spec.origin).resolve())
    return found
