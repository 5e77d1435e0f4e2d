"""A run that keeps as few checkpoints on the disk as it can: `--prune`.

    for each part of the trajectory: fetch → verify → plan → measure → delete what was fetched
                                                        meanwhile: fetch the next part

A part is as many checkpoints as are measured at a time, so copies of twice as many are on the disk at the most.  What
was there before the run stays: a revision in the hub's cache loses only the files that were added to it.  Copies that a
killed run leaves behind are noted in the output folder and belong to the run that continues it.  A checkpoint that
`run.json` has of the same commit is not fetched to learn what is known of its weights, so a finished run that is
repeated fetches configurations and tokenizers alone.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ptq_eval import plugins
from ptq_eval.checkpoints import foremost, gravest, local_path, verify_all
from ptq_eval.checkpoints.arrivals import files_in, files_of
from ptq_eval.checkpoints.base import CheckpointFormat
from ptq_eval.checkpoints.verify import Known
from ptq_eval.errors import OptionError, PtqEvalError
from ptq_eval.jobs.grid import Grid
from ptq_eval.jobs.job import Job
from ptq_eval.jobs.prefetch import Near, Prefetch
from ptq_eval.records import Checkpoint
from ptq_eval.results.store import Store

_SHARE_OF_DISK = 0.25
"""Share of the free disk that copies of the next part may take; variants of a long sweep take another."""


def in_parts(grid: Grid, checkpoints: Sequence[Checkpoint], roots: Sequence[str | Path]) -> list[PtqEvalError]:
    """Measure the missing trials of these checkpoints, found below `roots`; the errors of those that cannot be.

    Raises OptionError where several runs need one group size and length of windows, the gravest error if no checkpoint
    can be measured, and what `Grid.take` and `Grid.measure` raise.
    """
    config = grid.config
    _require_settled(grid, checkpoints)
    index, count = config.shard
    mine = checkpoints[index - 1 :: count]
    so_far: list[Checkpoint] = []
    known: Known = {}
    problems: list[PtqEvalError] = []
    excluded: list[Checkpoint] = []
    parts = [mine[start : start + config.jobs] for start in range(0, len(mine), config.jobs)]
    with _Copies(grid.store) as copies, Prefetch(config.memory) as prefetch:
        for part, following in zip(parts, [*parts[1:], []]):
            placed = copies.place(part)
            so_far += placed
            known |= _known_from(grid.store.read_run() or {}, placed)
            found = _verified(grid, so_far, placed, known)
            begin = partial(_prefetch, prefetch, copies, grid.store, following)
            problems += _measured(grid, found, roots, checkpoints, excluded, begin)
            prefetch.wait(lambda: grid.progress("fetching", 0.0, 0.0))
            copies.remove(part)
    if not grid.info:
        raise foremost(problems, "which `ptq-eval inspect` lists")
    if excluded:
        grid.add(excluded)
    return problems


def _require_settled(grid: Grid, checkpoints: Sequence[Checkpoint]) -> None:
    """Raise OptionError for what would be chosen for all runs together, which are never seen together."""
    runs = sorted({checkpoint.run for checkpoint in checkpoints})
    config = grid.config
    if config.shard[0] > len(checkpoints):
        got, allowed = "/".join(map(str, config.shard)), f"at most {len(checkpoints)} parts"
        raise OptionError("--shard leaves no checkpoint for this part", got=got, allowed=allowed)
    open_choices = {"--group-size": config.group_size == "auto", "--seq-len": config.seq_len is None}
    missing = [flag for flag, is_open in open_choices.items() if is_open]
    if len(runs) > 1 and missing:
        what = "--prune measures one checkpoint after the other, so what holds for several runs has to be given"
        raise OptionError(what, got=f"runs {', '.join(runs[:4])}", remedy=f"add {' and '.join(missing)}")


def _verified(grid: Grid, so_far: Sequence[Checkpoint], part: Sequence[Checkpoint], known: Known) -> list[Checkpoint]:
    """The checkpoints of a part, verified and compared with those before them."""
    found = verify_all(
        so_far,
        progress=lambda done, total, _name: grid.progress("reading weights", done, total),
        trust_remote_code=grid.config.trust_remote_code,
        known=known,
    )
    locations = {checkpoint.location for checkpoint in part}
    return [checkpoint for checkpoint in found if checkpoint.location in locations]


def _measured(
    grid: Grid,
    found: Sequence[Checkpoint],
    roots: Sequence[str | Path],
    every: Sequence[Checkpoint],
    excluded: list[Checkpoint],
    begin: Callable[[], None],
) -> list[PtqEvalError]:
    """Plan and measure a part; the errors of its checkpoints that cannot be, which are added to `excluded`.

    begin() is called if something is measured, before that.
    """
    wrong = [checkpoint for checkpoint in found if checkpoint.fatal]
    excluded += wrong
    problems = [gravest(checkpoint) for checkpoint in wrong]
    sound = [checkpoint for checkpoint in found if not checkpoint.fatal]
    if not sound:
        return problems
    try:
        grid.take(sound, roots, waiting=every)
    except PtqEvalError:
        if len(grid.plan.excluded) < len(sound):
            raise
        excluded += [checkpoint for checkpoint, _ in grid.plan.excluded]
        return [*problems, *(error for _, error in grid.plan.excluded)]
    problems += [error for _, error in grid.plan.excluded]
    jobs: list[Job] = []
    for job in grid.jobs():
        try:
            local_path(job.work.checkpoint)  # one that is known from before has only its small files here
            jobs.append(job)
        except PtqEvalError as error:
            problems.append(error)
    if not jobs:
        return problems
    begin()
    return problems + grid.measure(jobs)


def _prefetch(prefetch: Prefetch, copies: _Copies, store: Store, part: Sequence[Checkpoint]) -> None:
    """Begin to bring the checkpoints of a part near, except those that may have been measured before."""
    room = copies.nbytes <= _SHARE_OF_DISK * copies.free
    near = Near()
    for checkpoint in copies.place(part) if room else ():
        if _known_from(store.read_run() or {}, [checkpoint]):
            continue
        elsewhere = _format(checkpoint.format).scheme
        near += Near(fetch=(checkpoint,)) if elsewhere else Near.folder(Path(checkpoint.location))
    prefetch.begin(near)


def _known_from(run: Mapping[str, Any], part: Sequence[Checkpoint]) -> Known:
    """What `run.json` says of the checkpoints of a part that are of a known commit."""
    stored = {(c["run"], c["step"], c["revision"]): c for c in run.get("checkpoints", []) if c.get("commit")}
    known: Known = {}
    for checkpoint in part:
        entry = stored.get((checkpoint.run, checkpoint.step, checkpoint.revision))
        if entry is None or entry["commit"] != checkpoint.commit or not entry["weights_sha"]:
            continue
        before = Checkpoint.from_dict(entry)
        if not before.fatal:
            learnt = {name: getattr(before, name) for name in _LEARNT}
            known[checkpoint, files_of(checkpoint)] = replace(checkpoint, **learnt), None
    return known


_LEARNT = (
    "params", "params_source", "params_convention", "params_total", "params_quantized", "architecture", "weights_sha",
    "tokenizer_sha",
)  # fmt: skip
"""What verifying a checkpoint fills in."""


@dataclass(frozen=True)
class _Copy:
    """A folder that a format writes for a checkpoint, and the files that were in it before."""

    format: str
    path: str
    before: tuple[str, ...]

    def remove(self) -> None:
        """Delete the files that were added."""
        if Path(self.path).exists():
            _format(self.format).remove(Path(self.path), frozenset(self.before))


class _Copies:
    """The copies of a run's checkpoints, which the store has a note of before they are made."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._left = {c["path"]: _Copy(c["format"], c["path"], tuple(c["before"])) for c in store.read_copies()}
        self._own: dict[str, _Copy] = {}

    def __enter__(self) -> _Copies:
        return self

    def __exit__(self, *_: object) -> None:
        """Delete all copies, with what a killed run has left of checkpoints that this one did not come to."""
        for copy in (*self._own.values(), *self._left.values()):
            copy.remove()
        self._own, self._left = {}, {}
        self._note()

    @property
    def nbytes(self) -> int:
        """What all copies take."""
        return sum(size for copy in self._own.values() for _, size, _ in files_in(Path(copy.path)))

    @property
    def free(self) -> float:
        """Bytes that are free where the copies are."""
        there = [copy.path for copy in self._own.values() if Path(copy.path).exists()]
        return float(min((shutil.disk_usage(path).free for path in there), default=math.inf))

    def place(self, part: Sequence[Checkpoint]) -> list[Checkpoint]:
        """The checkpoints with their commits; from now on their copies may be made."""
        placed = []
        for checkpoint in part:
            path = None
            with suppress(PtqEvalError):  # fetching it will say what is wrong
                path = _format(checkpoint.format).copy_of(checkpoint)
            if path is not None:
                self._own.setdefault(checkpoint.location, self._copy(checkpoint.format, path))
                of_hub = checkpoint.location.startswith("hub:")
                checkpoint = replace(checkpoint, commit=path.name) if of_hub else checkpoint
            placed.append(checkpoint)
        self._note()
        return placed

    def remove(self, part: Sequence[Checkpoint]) -> None:
        """Delete the copies of these checkpoints."""
        for checkpoint in part:
            if copy := self._own.pop(checkpoint.location, None):
                copy.remove()
        self._note()

    def _copy(self, name: str, path: Path) -> _Copy:
        """What is known of a copy that an earlier run, or another name of the same commit, has made; or a new one."""
        known = {copy.path: copy for copy in self._own.values()}
        before = tuple(name for name, *_ in files_in(path)) if path.is_dir() else ()
        return known.get(str(path)) or self._left.pop(str(path), None) or _Copy(name, str(path), before)

    def _note(self) -> None:
        self._store.write_copies([asdict(copy) for copy in (*self._left.values(), *self._own.values())])


def _format(name: str) -> CheckpointFormat:
    return plugins.get("checkpoints", name)()
