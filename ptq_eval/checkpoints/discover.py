"""Find the trajectories in the folders given: which runs there are, and which checkpoints each of them has.

A folder may be a run, a checkpoint, or hold several runs a few levels down.  Every installed format looks at
each folder on the way; what one of them claims as a checkpoint is not searched further.  A run is the unit of
independence of every interval that is printed later, so it must be told apart safely: it is named by its
folder relative to the root, and two different folders never share a name.  Only names and small JSON files
are read.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ptq_eval import plugins
from ptq_eval.checkpoints.base import CheckpointFormat, subfolders
from ptq_eval.checkpoints.overrides import Overrides, read_overrides, require_known
from ptq_eval.errors import EmptyFolderError, NoCheckpointError, PtqEvalError, TrajectoryFileError
from ptq_eval.models.counts import with_counts
from ptq_eval.records import Checkpoint

MAX_DEPTH = 3
"""How many levels below a root are searched for runs."""


def discover(roots: Sequence[str | Path], *, overrides: Overrides | None = None) -> list[Checkpoint]:
    """All checkpoints under `roots` (folders or `hub:org/name@{rev,rev}` ids), by run, stage and numeric step.

    Reads names and JSON only; what is wrong with the weights is for `verify` to say.  Raises EmptyFolderError (also
    for a folder that may not be read), NoCheckpointError (each root must hold at least one checkpoint) and
    TrajectoryFileError.
    """
    try:
        runs = _merged([run for root in roots for run in _runs_of(root)])
    except OSError as error:
        raise EmptyFolderError("a folder cannot be read", got=error, remedy="mend its permissions") from error
    runs = _corrected(overrides or Overrides(), runs)
    found = [checkpoint for run in sorted(runs, key=lambda run: run.name) for checkpoint in run.checkpoints]
    if not found:
        raise TrajectoryFileError("every checkpoint is excluded", remedy="shorten `exclude`")
    return found


def local_path(checkpoint: Checkpoint) -> Path:
    """The folder with the checkpoint's files, fetched first if its format needs that.

    Raises UnreadableCheckpointError where fetching fails, UnknownPluginError where the format is not
    installed.
    """
    return plugins.get("checkpoints", checkpoint.format)().local_path(checkpoint)


@dataclass(frozen=True)
class _Run:
    """A run while it is being put together; `home` is its folder, None for a remote one."""

    name: str
    home: Path | None
    checkpoints: tuple[Checkpoint, ...]


def _runs_of(root: str | Path) -> list[_Run]:
    formats = [plugin() for plugin in plugins.load_all("checkpoints").values()]
    for form in formats:
        if form.scheme and str(root).startswith(f"{form.scheme}:"):
            return _grouped((checkpoint.run, None, checkpoint) for checkpoint in form.discover(root))
    folder = Path(os.path.abspath(root))
    if not folder.is_dir() or not any(not child.name.startswith(".") for child in folder.iterdir()):
        what = "an empty folder" if folder.is_dir() else "no such folder"
        raise EmptyFolderError(what, got=str(root), remedy="give a folder with checkpoints")
    formats = sorted((form for form in formats if not form.scheme), key=lambda form: form.fallback)
    found = list(_walk(folder, formats, 0, set()))
    if not found:
        raise NoCheckpointError(
            "no checkpoint of a known format",
            got=str(root),
            allowed="folders with config.json and weights: checkpoint-N (HF Trainer), stepN (Pythia), "
            "stage1-stepN-tokensMB (OLMo), step-N (SmolLM), ckpt_NNN (Amber), a hub cache, or one alone",
            remedy="save other formats with save_pretrained; give remote ones as hub:org/name@{rev,rev}",
        )
    runs = _grouped(
        (checkpoint.run or _name(home, folder), home, _counted(checkpoint))
        for home, checkpoint in ((_home(checkpoint), checkpoint) for checkpoint in found)
    )
    if layer := read_overrides(folder):
        runs = _corrected(layer, runs)
    return [corrected for run in runs for corrected in _own_corrections(run, folder)]


def _walk(folder: Path, formats: Sequence[CheckpointFormat], depth: int, claimed: set[Path]) -> Iterator[Checkpoint]:
    """The checkpoints in `folder` and below; `claimed` keeps links from being counted twice."""
    found: list[Checkpoint] = []
    for form in formats:
        if not (form.fallback and found):
            found += form.discover(folder)
    yield from (c for c in found if Path(c.location).resolve() not in claimed)
    claimed |= {Path(checkpoint.location).resolve() for checkpoint in found}
    if depth < MAX_DEPTH and folder.resolve() not in claimed:
        for child in subfolders(folder):
            if child.resolve() not in claimed:
                yield from _walk(child, formats, depth + 1, claimed)


def _counted(checkpoint: Checkpoint) -> Checkpoint:
    """With N where the configuration tells it; `verify` says what is wrong where it does not."""
    try:
        return with_counts(checkpoint, Path(checkpoint.location))
    except PtqEvalError:
        return checkpoint


def _home(checkpoint: Checkpoint) -> Path:
    """The folder of a checkpoint's run: its parent where the checkpoint has a place in a trajectory."""
    location = Path(checkpoint.location)
    return location.parent if checkpoint.run or checkpoint.step is not None else location


def _name(home: Path, root: Path) -> str:
    if home != root and home.is_relative_to(root):
        return home.relative_to(root).as_posix()
    return home.resolve().name or "run"


def _grouped(found: Iterable[tuple[str, Path | None, Checkpoint]]) -> list[_Run]:
    """One `_Run` per name and home, each in order of stage and numeric step, each location once."""
    groups: dict[tuple[str, Path | None], dict[tuple[str, str], Checkpoint]] = defaultdict(dict)
    for name, home, checkpoint in found:
        groups[name, home][checkpoint.location, checkpoint.revision] = replace(checkpoint, run=name)
    return [_Run(name, home, tuple(sorted(group.values(), key=_order))) for (name, home), group in groups.items()]


def _order(checkpoint: Checkpoint) -> tuple[str, bool, int, str]:
    return (checkpoint.stage, checkpoint.step is None, checkpoint.step or 0, checkpoint.revision)


def _own_corrections(run: _Run, root: Path) -> list[_Run]:
    """Under the run's own file, which speaks of more steps than are here where `root` is one of its checkpoints."""
    layer = read_overrides(run.home) if run.home and run.home != root else None
    return _corrected(layer, [run], whole=run.home != root.parent) if layer else [run]


def _corrected(layer: Overrides, runs: Sequence[_Run], whole: bool = True) -> list[_Run]:
    require_known(layer.runs, [run.name for run in runs], "run")
    if whole:
        layer.check_steps({checkpoint.step for run in runs for checkpoint in run.checkpoints})
    corrected = []
    for run in runs:
        checkpoints = layer.apply(run.checkpoints)
        if own := layer.runs.get(run.name):
            own.check_steps({checkpoint.step for checkpoint in run.checkpoints})
            checkpoints = own.apply(checkpoints)
        corrected.append(replace(run, checkpoints=tuple(checkpoints)))
    return corrected


def _merged(runs: Sequence[_Run]) -> list[_Run]:
    """The runs of all roots: one per folder, and none with another's name."""
    homes: dict[str, list[Path]] = defaultdict(list)
    for run in runs:
        if run.home is not None and run.home not in homes[run.name]:
            homes[run.name].append(run.home)
    named = []
    for run in runs:
        name = run.name
        if run.home is not None and len(homes[name]) > 1:
            name = _distinct(run.home, homes[name])
        named += [(name, run.home, checkpoint) for checkpoint in run.checkpoints]
    return _grouped(named)


def _distinct(home: Path, homes: Sequence[Path]) -> str:
    """The shortest end of `home` that no other of `homes` shares."""
    ends = ("/".join(home.parts[-k:]) for k in range(1, len(home.parts)))
    return next(end for end in ends if sum(other.as_posix().endswith(f"/{end}") for other in homes) == 1)
