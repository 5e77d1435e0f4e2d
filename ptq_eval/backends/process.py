"""One worker process: started, asked, watched, ended.

Nothing that the process does harms the caller.  It has a time for each cell, and a limit on the memory of itself and
its children, looked at several times a second.  What keeps it over several jobs, and replaces it, is `workers`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ptq_eval import units
from ptq_eval.backends import worker
from ptq_eval.backends.base import Cell
from ptq_eval.backends.environments import Place, home

_FIRST_POLL, _LAST_POLL = 0.005, 0.1
"""Seconds between two looks at a process: few at first, as small models take milliseconds, then more."""

_LAST = 300
"""Characters of a log's last line in a message."""

_PROGRESS = re.compile(r"\d%\|")
"""In a line that is a progress bar, which is never the reason of anything."""

_GRACE = 10.0
"""Seconds that a worker has to end once nothing more is asked of it."""


@dataclass(frozen=True)
class Limits:
    """What a worker may take: seconds to import its package, as many again for each cell, and bytes of memory."""

    seconds: float = 3600.0
    memory: int | None = None


@dataclass(frozen=True)
class Answer:
    """What became of a cell: a file of weights and facts (see `worker`), or an error."""

    cell: Cell
    weights: Path | None = None
    facts: dict[str, Any] | None = None
    error: str = ""


class Worker:
    """A running process.  Its folder, with its log, is deleted with it."""

    def __init__(self, place: Place, threads: int) -> None:
        """Start the process.  Raises OSError."""
        import psutil

        self.place, self.threads = place, threads
        self._home = Path(tempfile.mkdtemp(prefix="ptq-eval-worker-"))
        start = {"entry": place.entry, "packages": _packages(place.entry), "threads": threads, "parent": os.getpid()}
        (self._home / "start.json").write_text(json.dumps(start), encoding="utf-8")
        environment = {
            **{name: value for name, value in os.environ.items() if place.ours or name != "PYTHONPATH"},
            **place.variables,
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": str(threads),
            "TMPDIR": str(self._home),
        }
        command = [str(place.python), "-P", worker.__file__, str(self._home)]
        options: dict[str, Any] = {"cwd": self._home, "env": environment, "stdin": subprocess.PIPE}
        self._asked = 0
        try:
            with open(self._log, "ab") as file:
                self._process = psutil.Popen(command, stdout=file, stderr=file, **options)
        except OSError:
            shutil.rmtree(self._home, ignore_errors=True)
            raise

    @property
    def _log(self) -> Path:
        return self._home / "log"

    @property
    def alive(self) -> bool:
        """Whether the process still runs; one that was killed and whose threads are still ending does not."""
        import psutil

        try:
            return self._process.poll() is None and self._process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    @property
    def ready(self) -> bool:
        """Whether it has imported its package."""
        return (self._home / "ready").exists()

    def ask(self, folder: Path) -> None:
        """Hand over a job; a process that has ended is noticed by `wait`."""
        self._asked = self._log.stat().st_size
        with contextlib.suppress(OSError):
            self._process.stdin.write(f"{folder}\n".encode())
            self._process.stdin.flush()

    def wait(self, answer: Path, limits: Limits) -> str:
        """Wait for the file of an answer; why it will not come, or nothing."""
        imported, end, pause = self.ready, time.monotonic() + limits.seconds, _FIRST_POLL
        while not answer.exists():
            if not imported and self.ready:  # a cell after one that was ended does not pay for the new process
                imported, end = True, time.monotonic() + limits.seconds
            code = self._process.poll()
            if code is not None and not answer.exists():
                return _ended(code)
            if time.monotonic() > end:
                what = "no answer" if imported else "its package was not imported"
                return f"{what} within {limits.seconds:g} s"
            if limits.memory is not None and self.memory() > limits.memory:
                return f"took more than {units.write(limits.memory, units.BYTES)} of memory"
            time.sleep(pause)
            pause = min(_LAST_POLL, 1.2 * pause)
        return ""

    def memory(self) -> int:
        """Resident bytes of the process and its children."""
        import psutil

        total = 0
        for one in self._family():
            with contextlib.suppress(psutil.Error):
                total += one.memory_info().rss
        return total

    def last_words(self) -> str:
        """The last line of what it printed during the present job, and where the log is kept."""
        with open(self._log, "rb") as file:
            file.seek(self._asked)
            text = file.read().decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip() and not _PROGRESS.search(line)]
        shown = f": {lines[-1][:_LAST]}" if lines else ""
        return f"{shown}; log: {_kept(self.place.name, self._log)}"

    def close(self, *, kill: bool = False) -> None:
        """End the process and whatever it has started: at once, or when it has done what it was asked for."""
        import psutil

        with contextlib.suppress(OSError):
            self._process.stdin.close()
        if kill:
            self._kill()
        try:
            self._process.wait(_GRACE)
        except psutil.TimeoutExpired:
            self._kill()
        shutil.rmtree(self._home, ignore_errors=True)

    def _family(self) -> list[Any]:
        import psutil

        with contextlib.suppress(psutil.Error):
            return [self._process, *self._process.children(recursive=True)]
        return []

    def _kill(self) -> None:
        import psutil

        for one in self._family():
            with contextlib.suppress(psutil.Error):
                one.kill()
        with contextlib.suppress(psutil.TimeoutExpired):
            self._process.wait(_GRACE)


def write_job(
    folder: Path, cells: Sequence[Cell], layers: Mapping[str, int], *, device: str = "cpu", reload: bool = False
) -> None:
    """Describe a job beside its model and token ids: `layers` are the names of the layers with their columns."""
    job = {"cells": [asdict(cell) for cell in cells], "layers": dict(layers), "device": device, "reload": reload}
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")


def read_answer(folder: Path, number: int, cell: Cell) -> Answer:
    """The answer to the cell of that number, which is there."""
    facts = json.loads((folder / f"{number}.json").read_text(encoding="utf-8"))
    if "error" in facts:
        return Answer(cell, error=facts["error"])
    return Answer(cell, folder / f"{number}.safetensors", facts)


def _ended(code: int) -> str:
    if code >= 0:
        return f"its process ended with code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
    hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"its process was killed by {name}{hint}"


def _kept(name: str, log: Path) -> Path:
    """A copy of a log that outlives the process, one for each backend."""
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
