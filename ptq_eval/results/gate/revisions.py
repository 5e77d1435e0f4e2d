"""Results as they are in a git revision: `REVISION:FOLDER`, as git itself names the folder of a commit.

Only what a comparison reads is taken out, into a temporary folder.  A folder of that very name comes first.
"""

from __future__ import annotations

import contextlib
import io
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ptq_eval.errors import RevisionError
from ptq_eval.results.store import is_records

_READ = ("run.json", "degradation.csv")
_REMEDY = "REVISION:FOLDER, as in main:results/embedded; `git log` lists revisions"


@contextlib.contextmanager
def located(name: str) -> Iterator[Path]:
    """The folder (or file) of results called `name`, for as long as the context lasts.

    Raises RevisionError for a revision, or a folder in it, that does not exist.
    """
    revision, colon, folder = name.partition(":")
    if Path(name).exists() or not colon or len(revision) < 2 or "/" in folder[:1]:  # one letter: a drive
        yield Path(name)
        return
    with tempfile.TemporaryDirectory(prefix="ptq-eval-") as temporary:
        _extract(revision, folder, Path(temporary))
        yield Path(temporary)


def _extract(revision: str, folder: str, into: Path) -> None:
    top = _git("rev-parse", "--show-toplevel")
    if top is None:
        raise RevisionError("a git revision is named outside of a git repository", got=revision, remedy=_REMEDY)
    if _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}") is None:
        raise RevisionError("there is no such git revision", got=revision, remedy=_REMEDY)
    tree = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}:{folder.rstrip('/')}")
    if tree is None or (_git("cat-file", "-t", tree) or "") != "tree":
        raise RevisionError(f"git revision {revision} has no such folder", got=folder, remedy=_REMEDY)
    names = [
        name for name in (_git("ls-tree", "-r", "--name-only", "-z", tree, cwd=top) or "").split("\0") if _wanted(name)
    ]
    if not names:
        return  # the folder is there and empty: whoever reads it says so
    packed = subprocess.run(
        ["git", "archive", "--format=tar", tree, "--", *names], cwd=top, capture_output=True, check=False
    )
    if packed.returncode:
        raise RevisionError("git cannot take the results out of a revision", got=packed.stderr.decode(errors="replace"))
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(into, filter="data")


def _wanted(name: str) -> bool:
    path = PurePosixPath(name)
    return (
        path.name in _READ
        or is_records(path)
        or (path.name.startswith("samples_") and path.suffix == ".jsonl")
        or (path.name.startswith("results_") and path.suffix == ".json")
    )


def _git(*arguments: str, cwd: str | None = None) -> str | None:
    """What git says, None where it fails or is not installed."""
    try:
        done = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
