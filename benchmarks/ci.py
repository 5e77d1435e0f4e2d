"""The gate of this repository: `python -m benchmarks.ci REVISION` measures what `ci.toml` says, with both codes.

The code of the revision is taken out of git into a temporary folder and measured in a process of its own, with the
packages that are installed here; then the working tree is, and `ptq-eval compare` decides: its exit code is the one of
this program.  Without a revision, it is where this branch left main, or on main the commit before; a clone that lacks
that commit has nothing to compare with, which is said.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_MEASURE = """
import json, sys, pathlib, ptq_eval
options = json.loads(sys.argv[2])
assert pathlib.Path(ptq_eval.__file__).is_relative_to(sys.argv[3]), ptq_eval.__file__
ptq_eval.run(options.pop("folders"), sys.argv[1], write_report=False, **options)
"""


def plan() -> dict[str, Any]:
    """The content of `ci.toml`, folders as absolute paths."""
    found = tomllib.loads((ROOT / "benchmarks" / "ci.toml").read_text("utf-8"))
    found["run"]["folders"] = [str(ROOT / folder) for folder in found["run"]["folders"]]
    return found


def gate(revision: str, arguments: list[str], asked: dict[str, Any]) -> int:
    """Measure with both codes and compare; the exit code."""
    with tempfile.TemporaryDirectory(prefix="ptq-eval-gate-") as temporary:
        folder = Path(temporary)
        old = folder / "code"
        old.mkdir()
        packed = subprocess.run(["git", "-C", ROOT, "archive", revision], check=True, capture_output=True)
        subprocess.run(["tar", "-x", "-C", old], input=packed.stdout, check=True)
        for name, code in (("base", old), ("new", ROOT)):
            command = [sys.executable, "-c", _MEASURE, folder / name, json.dumps(asked["run"]), code]
            subprocess.run(command, check=True, cwd=folder, env={**os.environ, "PYTHONPATH": str(code)})
        flags = [word for name, value in asked["compare"].items() for word in (f"--{name}", str(value))]
        compare = [sys.executable, "-m", "ptq_eval", "compare", "base", "new", *flags, *arguments]
        done = subprocess.run(compare, check=False, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)})
        return done.returncode


def before() -> str:
    """Where this branch left main, or the commit before; "" where neither is there."""
    here, left = (_git("rev-parse", "HEAD"), _git("merge-base", "HEAD", "main"))
    return left if left and left != here else _git("rev-parse", "--verify", "--quiet", "HEAD~1")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


if __name__ == "__main__":
    revision, *more = sys.argv[1:] or [before()]
    if not revision:
        print("no earlier revision in this clone: nothing to compare with", file=sys.stderr)
    sys.exit(gate(revision, more, plan()) if revision else 0)
