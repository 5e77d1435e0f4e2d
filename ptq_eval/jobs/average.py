"""Averages of a trajectory's last checkpoints, measured like any checkpoint: `ptq-eval average`.

    discover → choose → verify → (average → verify → plan → measure → delete), one by one → average.json

What is measured is in OUT as `ptq-eval run` stores it, so a command that is repeated measures only what is missing; an
average is made again for that, as a record belongs to the hash of its weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ptq_eval.checkpoints import Overrides, discover, foremost, gravest, verify, verify_all
from ptq_eval.checkpoints.average import averaged, write_average
from ptq_eval.checkpoints.verify import Known
from ptq_eval.config.endings import AVERAGE, AverageConfig
from ptq_eval.config.options import declared
from ptq_eval.config.run import RunConfig
from ptq_eval.errors import OptionError, PtqEvalError
from ptq_eval.jobs.grid import Grid
from ptq_eval.jobs.run import default_output
from ptq_eval.jobs.sensitivity import chosen
from ptq_eval.measure.trials import make_plan, quantizers_of
from ptq_eval.pretrain.saving import write_folder
from ptq_eval.records import Checkpoint, Progress
from ptq_eval.report.endings import page
from ptq_eval.results.endings import Ending, record_of

LAST = "last"
FOLDER = "averages"


@dataclass(frozen=True)
class _Target:
    """A checkpoint at which averages end, with those before it in order, itself the last."""

    members: tuple[Checkpoint, ...]

    @property
    def checkpoint(self) -> Checkpoint:
        return self.members[-1]


def average(
    folders: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    windows: Any = (2, 4, 8),
    steps: Any = LAST,
    keep: bool = False,
    overrides: Overrides | Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[dict[str, Any], list[PtqEvalError]]:
    """Measure averages of the last checkpoints of each run under `folders` beside the last one; written to `out`.

    `windows`: how many checkpoints are averaged, each number in turn.  `steps`: at which checkpoints averages end.
    `keep`: averages stay in OUT/averages, else one is on the disk at a time.  `options` are fields of
    `config.run.RunConfig`.  Returns the content of `average.json`, and the errors of what could not be measured.
    Raises PtqEvalError subclasses.
    """
    asked = AverageConfig.of({"windows": windows, "steps": steps, "keep": keep})
    overrides = Overrides.take(options, overrides)
    config = replace(RunConfig.of(options, also=declared(Overrides)), prune=True)
    require_one_process(config, "averages are made and measured by one process")
    said: Progress = progress or (lambda what, done, total: None)
    roots = [folders] if isinstance(folders, (str, Path)) else list(folders)
    out = Path(out) if out is not None else default_output(roots[0], AVERAGE)
    quantizers_of(config)
    config.resolve_device()
    targets, problems = _verified(_targets(discover(roots, overrides=overrides), asked), asked, config, said)
    grid = Grid(out, _settled(config, [target.checkpoint for target in targets], said), said)
    every = [target.checkpoint for target in targets]
    every += [_place(target, size, out) for target in targets for size in _sizes(target, asked)]
    endings: list[Ending] = []
    for target in targets:
        problems += _measure(grid, target.checkpoint, roots, every)
        endings.append(_ending(target, LAST, target.checkpoint.run))
        for size in _sizes(target, asked):
            with _made(target, size, out, asked.keep, config.trust_remote_code) as checkpoint:
                problems += _measure(grid, checkpoint, roots, every)
            endings.append(_ending(target, name_of(size), checkpoint.run, size))
            page.write(out, _record(grid, endings))
    if not asked.keep:
        shutil.rmtree(out / FOLDER, ignore_errors=True)
    return _record(grid, endings), problems


def require_one_process(config: RunConfig, why: str) -> None:
    """Raise OptionError, which says `why`, where several processes or a cluster are to share the work."""
    if config.shard != (1, 1) or config.executor != "local":
        got = config.executor if config.executor != "local" else f"--shard {'/'.join(map(str, config.shard))}"
        raise OptionError(why, got=got, remedy="omit it")


def name_of(size: int) -> str:
    """What an average of so many checkpoints is called, as branches of a probe are."""
    return f"{AVERAGE}:{size}"


def _targets(checkpoints: Sequence[Checkpoint], asked: AverageConfig) -> list[_Target]:
    """The checkpoints at which averages end, each with all before it."""
    runs: dict[str, list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        runs.setdefault(checkpoint.run, []).append(checkpoint)
    found = []
    for checkpoint in chosen(checkpoints, asked.steps):
        own = runs[checkpoint.run]
        found.append(_Target(tuple(own[: own.index(checkpoint) + 1])))
    require_enough(max(len(target.members) for target in found), asked.windows[0], "--windows ")
    return [target for target in found if len(target.members) >= asked.windows[0]]


def require_enough(there: int, size: int, flag: str) -> None:
    """Raise OptionError where an average of `size` checkpoints is asked for, and fewer are there.

    `flag` is what a number follows: `--windows `, `--branch average:`.
    """
    if there < size:
        allowed = f"2 to {there}" if there > 1 else ""
        what = f"{flag}{size} asks for an average of more checkpoints than were saved up to this one"
        got = f"{size} with {there} checkpoint{'s' if there > 1 else ''}"
        more = "save more checkpoints of the run, or give the folder with all of them"
        remedy = f"{flag}{there}" if there > 1 else more
        raise OptionError(what, got=got, allowed=allowed, remedy=remedy)


def _verified(
    targets: Sequence[_Target], asked: AverageConfig, config: RunConfig, progress: Progress
) -> tuple[list[_Target], list[PtqEvalError]]:
    """The targets with the members that averages need, and the errors of checkpoints that cannot be any.

    No more are read than that: where one is wrong, or repeats another, the one before them is read too.
    """
    known: Known = {}
    excluded: dict[Checkpoint, PtqEvalError | None] = {}
    while True:
        usable = [[one for one in target.members if one not in excluded][-asked.windows[-1] :] for target in targets]
        needed = list(dict.fromkeys(one for own in usable for one in own))
        found = verify_all(
            needed,
            progress=lambda done, total, _name: progress("reading weights", done, total),
            trust_remote_code=config.trust_remote_code,
            known=known,
        )
        verified = {(one.location, one.revision): one for one in found}
        own_of = {one: verified.get((one.location, one.revision)) for one in needed}
        more = {
            one: gravest(own) if own is not None else None for one, own in own_of.items() if own is None or own.fatal
        }
        if not more:
            break
        excluded |= more
    problems = [error for error in excluded.values() if error is not None]
    members = [tuple(own for one in own_list if (own := own_of[one]) is not None) for own_list in usable]
    kept = [
        _Target(own)
        for target, own in zip(targets, members)
        if len(own) >= asked.windows[0] and excluded.get(target.checkpoint) is None
    ]
    if not kept and problems:
        raise foremost(problems, "which `ptq-eval inspect` lists")
    if not kept:
        require_enough(max(map(len, members)), asked.windows[0], "--windows ")
    return kept, problems


def _sizes(target: _Target, asked: AverageConfig) -> list[int]:
    return [size for size in asked.windows if size <= len(target.members)]


def _settled(config: RunConfig, checkpoints: Sequence[Checkpoint], progress: Progress) -> RunConfig:
    """With the group size and window length that all runs together get, since they are planned one by one."""
    plan = make_plan(checkpoints, config, progress)
    if not plan.models:
        raise plan.excluded[0][1]
    model = next(iter(plan.models.values()))
    return replace(config, group_size=model["group_size"], seq_len=model["seq_len"])


def _measure(
    grid: Grid, checkpoint: Checkpoint, roots: Sequence[str | Path], every: Sequence[Checkpoint]
) -> list[PtqEvalError]:
    if checkpoint.fatal:
        return [gravest(checkpoint)]
    grid.take([checkpoint], roots, waiting=every)
    return [*(error for _, error in grid.plan.excluded), *grid.measure(grid.jobs())]


def _place(target: _Target, size: int, out: Path) -> Checkpoint:
    """The record of an average, which need not be there."""
    last, run = target.checkpoint, f"{target.checkpoint.run} {name_of(size)}"
    place = f"{run}@{last.step if last.step is not None else last.revision}"
    folder = out / FOLDER / place.replace("/", "_").replace(":", "-").replace(" ", "-")
    return averaged(target.members[-size:], run, folder)


@contextmanager
def _made(target: _Target, size: int, out: Path, keep: bool, trust: bool) -> Iterator[Checkpoint]:
    """An average, verified; deleted at the end unless it is to be kept."""
    checkpoint = _place(target, size, out)
    folder = Path(checkpoint.location)
    folder.parent.mkdir(parents=True, exist_ok=True)
    members = target.members[-size:]
    write_folder(folder, lambda partial: write_average(members, partial, trust_remote_code=trust))
    try:
        yield verify(checkpoint, trust_remote_code=trust)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _ending(target: _Target, name: str, run: str, size: int = 1) -> Ending:
    first, last = target.members[-size], target.checkpoint
    facts = {"checkpoints": size, "first_step": first.step, "first_tokens": first.tokens}
    return Ending(last.name, name, run, last.step, None if size == 1 else LAST, facts)


def _record(grid: Grid, endings: Sequence[Ending]) -> dict[str, Any]:
    """What is measured by now."""
    return record_of(AVERAGE, grid.results(), endings)
