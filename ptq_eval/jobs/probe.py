"""How a run may end from one checkpoint of its trunk, measured at equal data: `ptq-eval probe`.

    checkpoint → trunk and branches trained on → averages → verify → plan → measure → probe.json

Every ending is compared with the trunk at the same D: a branch that goes on to step E with the trunk that goes on to E
in the same text, an average with the checkpoint at which it ends.  OUT has the branches as a study has its runs, and
what is measured as `ptq-eval run` stores it, so a command that is repeated goes on where it ended.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ptq_eval.checkpoints import discover, verify_all
from ptq_eval.checkpoints.average import averaged, write_average
from ptq_eval.config.endings import AVERAGE, Branch, ProbeConfig
from ptq_eval.config.run import RunConfig
from ptq_eval.errors import EmptyFolderError, NoCheckpointError, OptionError, PtqEvalError
from ptq_eval.jobs.average import FOLDER, require_enough, require_one_process
from ptq_eval.jobs.grid import Grid
from ptq_eval.measure.trials import quantizers_of
from ptq_eval.pretrain.saving import write_folder
from ptq_eval.pretrain.stacked import branches
from ptq_eval.records import Checkpoint, Progress
from ptq_eval.report.endings import page
from ptq_eval.results.endings import Ending, record_of

PROBE = "probe"
TRUNK = "trunk"


def probe(
    checkpoint: str | Path,
    out: str | Path,
    *,
    branch: Any,
    text: str | None = None,
    compile: bool | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[dict[str, Any], list[PtqEvalError]]:
    """Train the branches from a checkpoint of a trunk, and measure them beside the trunk at equal D; written to `out`.

    `branch`: specs such as "decay:10%", see `config.endings`.  `text`: what the run was trained on, by default what its
    pretrain.json says.  `compile`: use torch.compile for branches.  `options` are fields of `config.run.RunConfig`.
    Returns the content of `probe.json`, and the errors of what could not be measured.  Raises PtqEvalError subclasses:
    ContinuationError for a checkpoint from which the training cannot be continued.
    """
    asked = ProbeConfig.of({"branch": branch, "text": text, "compile": compile})
    config = RunConfig.of(options)
    require_one_process(config, "branches are trained and measured by one process")
    quantizers_of(config)
    device, said = config.resolve_device(), progress or (lambda what, done, total: None)
    out, folder = Path(out), Path(os.path.abspath(checkpoint))
    beside = _beside(folder)
    trunk = branches.read_trunk(folder, asked.text)
    start = replace(_one(beside, folder), run=TRUNK)
    ready = {one: _ready(one, trunk, beside, out) for one in asked.branch if not one.trained}
    trained = [one for one in asked.branch if one.trained]
    made = branches.train(trunk, trained, out, device=device, compiled=asked.compile, progress=said)
    found, endings = [start], [Ending(_at(trunk, trunk.step), TRUNK, TRUNK, trunk.step)]
    for end in sorted({one.end(trunk.step) for one in trained}):
        found.append(_trained(made[branches.trunk_name(end)], TRUNK))
        endings.append(Ending(_at(trunk, end), TRUNK, TRUNK, end, facts={"steps": end - trunk.step}))
    for one in asked.branch:
        found.append(_trained(made[one.name], one.name) if one.trained else _written(ready[one], one, config))
        end = one.end(trunk.step) if one.trained else trunk.step
        endings.append(Ending(_at(trunk, end), one.name, one.name, end, TRUNK, {"steps": end - trunk.step}))
    grid = Grid(out, config, said)
    checkpoints = verify_all(
        found,
        progress=lambda done, total, _name: said("reading weights", done, total),
        trust_remote_code=config.trust_remote_code,
    )
    grid.take(checkpoints, ())
    problems = [*(error for _, error in grid.plan.excluded), *grid.measure(grid.jobs())]
    about = {"run": str(trunk.run), "step": trunk.step, "tokens": start.tokens, "text": trunk.text}
    record = record_of(PROBE, grid.results(), endings, start=about)
    page.write(out, record)
    return record, problems


def _at(trunk: branches.Trunk, step: int) -> str:
    """The group of endings with the D of the trunk at a step."""
    return f"{trunk.run.name}@{step}"


def _beside(folder: Path) -> list[Checkpoint]:
    """The checkpoints of the run to which the one in `folder` belongs, up to that one.  Raises EmptyFolderError."""
    if not folder.is_dir():
        raise EmptyFolderError("no such checkpoint", got=folder, allowed="RUN/trunk/checkpoint-STEP")
    every = discover([folder.parent])
    places = [Path(one.location) for one in every]
    return every[: places.index(folder) + 1] if folder in places else []


def _one(beside: Sequence[Checkpoint], folder: Path) -> Checkpoint:
    if not beside:
        raise NoCheckpointError("no checkpoint of a trunk", got=folder, allowed="RUN/trunk/checkpoint-STEP")
    return beside[-1]


def _trained(folder: Path, name: str) -> Checkpoint:
    """The checkpoint in a folder of its own, as one of the run `name`."""
    place = Path(os.path.abspath(folder))
    return replace(_one(_beside(place), place), run=name, family="")


@dataclass(frozen=True)
class _Ready:
    """What an ending without training is made of: the checkpoints to average, or one that is there."""

    members: tuple[Checkpoint, ...]
    folder: Path


def _ready(one: Branch, trunk: branches.Trunk, beside: Sequence[Checkpoint], out: Path) -> _Ready:
    """Raises OptionError where it is not there, before anything is trained."""
    if one.kind == AVERAGE:
        size = int(one.amount)
        require_enough(len(beside), size, f"--branch {AVERAGE}:")
        folder = out / FOLDER / one.name.replace(":", "-") / beside[-1].revision
        return _Ready(tuple(beside[-size:]), folder)
    saved = branches.averages_saved(trunk.run, trunk.step)
    name = one.name.replace(":", "-")
    if name not in saved:
        names = ", ".join(other.replace("-", ":", 1) for other in saved)
        remedy = "average:4, of checkpoints that were saved" if not saved else ""
        what = "the run saved no such average beside this checkpoint"
        raise OptionError(what, got=f"--branch {one.name}", allowed=names, remedy=remedy)
    return _Ready((), saved[name])


def _written(ready: _Ready, one: Branch, config: RunConfig) -> Checkpoint:
    """The checkpoint of an ending without training, averaged if it is not there yet."""
    if not ready.members:
        return _trained(ready.folder, one.name)
    if not ready.folder.is_dir():
        ready.folder.parent.mkdir(parents=True, exist_ok=True)
        trust = config.trust_remote_code
        write_folder(ready.folder, lambda partial: write_average(ready.members, partial, trust_remote_code=trust))
    return averaged(ready.members, one.name, ready.folder)
