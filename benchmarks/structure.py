"""How far a reader walks: the files that one `ptq-eval run` enters, and how the modules of both packages hang together.

A file counts as entered when one of its functions runs; what runs only while a module is imported does not count, and
neither do loops compiled by numba.  A pair is a file whose function calls into another file, other packages between the
two not counted.  The run measures the embedded trajectory's small model with RTN and GPTQ at two bit-widths.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.harness import ROOT, Claim, Outcome, Setup
from tests.support.imports import ROOTS, circles, sources, upward

MODEL = "llama-40k"
OPTIONS = "--quantizers rtn,gptq --bits 2,4 --group-size 16 --eval-windows 4 --calib-windows 4 --bootstrap 20"
MAX_FILES = 80


def measure(setup: Setup) -> Outcome:
    """Trace one run in a process of its own, and read the imports."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.structure", str(setup.trajectory / MODEL), f"{folder}/out"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-500:])
    pairs = [tuple(pair) for pair in json.loads(done.stdout.splitlines()[-1])]
    files = sorted({callee for _, callee in pairs})
    modules = sources()
    higher, circular = upward(modules), circles(modules)
    lines = lambda root: sum(path.read_text("utf-8").count("\n") for path in root.rglob("*.py"))
    return Outcome(
        claims=[
            _count("files that one run enters", len(files), MAX_FILES - 1),
            _count("pairs of files, one calling the other", len(set(pairs))),
            _count("sets of modules that import each other", len(circular), 0),
            _count("imports of a higher folder by a lower one", len(higher), 0),
            *(_count(f"source lines of {root.name}", lines(root)) for root in ROOTS),
        ],
        details={
            "options": OPTIONS,
            "files entered": files,
            "entered, by folder": dict(Counter(file.rpartition("/")[0] for file in files).most_common()),
            "circles": circular,
            "upward imports": higher,
        },
    )


def _count(what: str, value: int, limit: int | None = None) -> Claim:
    return Claim(what, value, value, value, limit)


class Trace:
    """The (caller, callee) pairs of files of both packages, of every thread, while it is the profiler of Python."""

    def __init__(self) -> None:
        self.pairs: set[tuple[str, str]] = set()
        self._thread = threading.local()
        self._names: dict[str, str] = {}

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        importing = getattr(self._thread, "importing", 0)
        if frame.f_code.co_name == "<module>":
            self._thread.importing = importing + {"call": 1, "return": -1}.get(event, 0)
        elif event == "call" and not importing and (callee := self._name(frame)):
            caller, above = "", frame.f_back
            while above is not None and not caller:
                caller, above = self._name(above), above.f_back
            if caller != callee:
                self.pairs.add((caller, callee))

    def _name(self, frame: FrameType) -> str:
        """The file of a frame, relative to the folder that holds both packages; "" for a file of neither."""
        path = frame.f_code.co_filename
        if path not in self._names:
            root = next((root for root in ROOTS if Path(path).is_relative_to(root)), None)
            self._names[path] = str(Path(path).relative_to(root.parent)) if root else ""
        return self._names[path]


def _run(folder: str, out: str) -> None:
    """`ptq-eval run` in this process; prints the pairs as JSON on the last line."""
    from ptq_eval.cli.main import cli

    trace = Trace()
    threading.setprofile(trace)
    sys.setprofile(trace)
    try:
        cli.main(["run", folder, "-o", out, *OPTIONS.split()], standalone_mode=False)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    print(json.dumps(sorted(trace.pairs)))


if __name__ == "__main__":
    _run(*sys.argv[1:])
