"""Find the trajectories in some folders: which runs there are, and which checkpoints each of them has.

A folder may be a run, a checkpoint, or hold several runs a few levels down.  Every installed format looks at
each folder on the way; what one of them claims as a checkpoint is not searched further.  A model in the run's own
folder, or in a folder such as `final` beside its checkpoints, is one of them.  A run is the unit of independence of
every interval that is printed later, so runs must not be confused: each is named by its folder relative to the root,
and two different folders never share a name.  Only names and small JSON files are read.
"""

from __future__ import annotations

import os
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ptq_eval import plugins
from ptq_eval.checkpoints.architecture import WHOLE
from ptq_eval.checkpoints.base import CheckpointFormat, Position, counted, holds_model, holds_weights, subfolders
from ptq_eval.checkpoints.families import with_family
from ptq_eval.checkpoints.foreign import foreign
from ptq_eval.checkpoints.growth import with_sound_counts
from ptq_eval.checkpoints.hub import with_all_revisions
from ptq_eval.checkpoints.labels import extra_words, name_order, stage_order
from ptq_eval.checkpoints.numbered import Numbered, with_numbers_as_steps
from ptq_eval.checkpoints.overrides import Overrides, Place, read_overrides, require_known
from ptq_eval.checkpoints.problems import ROOT, beside
from ptq_eval.errors import (
    EmptyFolderError,
    NoCheckpointError,
    OptionError,
    PtqEvalError,
    TrajectoryFileError,
    did_you_mean,
)
from ptq_eval.records import Checkpoint

_NO_STEP = (
    "{what} has no step; to include it, give D of every checkpoint with --tokens, in the order of `ptq-eval inspect`, "
    "or list all folders with their steps or D in a trajectory.yaml"
)
_OF_SEVERAL = (
    "{what} may belong to any of the runs {runs}; move it into a folder with the checkpoints of its run, or list all "
    "folders with their steps or D in a trajectory.yaml"
)
_BRANCH = "where it is a point of that run, list its folders with step and D in a trajectory.yaml"
_LAST = re.compile(
    r"((checkpoint|ckpt|model|step|iter|epoch)[-_])?(final|best|last|latest|main|release|end)"
    r"([-_](checkpoint|ckpt|model|step|iter|epoch|hf|unsharded|merged))*",
    re.IGNORECASE,
)
"""Names of folders that say which checkpoint of a run they hold, but not its step."""
_ARCHIVE = re.compile(r"\.(zip|tar|tgz|tbz2?|txz|gz|bz2|xz|zst|7z|rar)$", re.IGNORECASE)
MAX_DEPTH = 3
"""How many levels below a root are searched for runs."""


def discover(
    roots: Sequence[str | Path], *, overrides: Overrides | Mapping[str, Any] | None = None
) -> list[Checkpoint]:
    """All checkpoints under `roots` (folders, `hub:` or `suite:` ids), by run, stage and numeric step.

    Reads names and JSON only; what is wrong with the weights is for `verify` to say.  Raises EmptyFolderError (also
    for a folder that may not be read), NoCheckpointError (each root must hold at least one checkpoint),
    UnsupportedModelError (for a root that is a checkpoint of another format), HubError, OptionError and
    TrajectoryFileError.
    """
    corrections = Overrides.made_of(overrides)
    try:
        every = corrections.checkpoint_count is not None
        roots = [with_all_revisions(root) if every else root for root in roots]
        runs = _merged([run for root in roots for run in _runs_of(root, corrections)])
    except OSError as error:
        raise EmptyFolderError("a folder cannot be read", got=error, remedy="allow reading it") from error
    runs = [replace(run, checkpoints=tuple(with_sound_counts(run.checkpoints))) for run in runs]
    runs = _corrected(corrections, runs, error=OptionError)
    found = [checkpoint for run in sorted(runs, key=lambda run: run.name) for checkpoint in run.checkpoints]
    if not found:
        raise TrajectoryFileError("every checkpoint is excluded", remedy="shorten `exclude`")
    return found


def _with_branches(runs: Sequence[_Run]) -> list[_Run]:
    """With a note at each run whose names say more than a longer run's beside it: step490-cooldown, step490."""
    found = []
    for run in runs:
        words = extra_words(run.checkpoints[0].revision)
        beside = [other for other in runs if other.home == run.home and len(other.checkpoints) >= len(run.checkpoints)]
        of = next((other for other in beside if extra_words(other.checkpoints[0].revision) < words), None)
        if of is not None and run.home is not None:
            more = " ".join(sorted(words - extra_words(of.checkpoints[0].revision)))
            message = (
                f"taken for a branch of {of.name}, and so for a run of its own ({run.name}): its name says {more!r}"
            )
            first = run.checkpoints[0].with_problem("branch", message, remedy=_BRANCH)
            run = replace(run, checkpoints=(first, *run.checkpoints[1:]))
        found.append(run)
    return found


@dataclass(frozen=True)
class _Run:
    """A run while it is being put together; `home` is its folder, None for a remote one."""

    name: str
    home: Path | None
    checkpoints: tuple[Checkpoint, ...]


def _runs_of(root: str | Path, corrections: Overrides) -> list[_Run]:
    formats = [plugin() for plugin in plugins.load_all("checkpoints").values()]
    for form in formats:
        if form.scheme and str(root).startswith(f"{form.scheme}:"):
            known = (with_family(checkpoint, None) for checkpoint in form.discover(root))
            return _grouped((checkpoint.run, None, checkpoint) for checkpoint in known)
    folder = _folder(root)
    layer = read_overrides(folder)
    whole = any(WHOLE in own.architecture for own in (corrections, layer) if own)
    formats = [form for form in formats if form.needs_architecture == whole]
    found = list(_walk(folder, sorted(formats, key=lambda form: form.fallback), 0, set()))
    if not found:
        if error := foreign(folder):
            raise error
        raise NoCheckpointError(
            "no checkpoint of a known format",
            got=str(root),
            allowed="folders with config.json and weights, alone or numbered: checkpoint-N (HF Trainer), stepN, "
            "iter_N, N/hf, epoch_N, stage1-stepN-tokensMB and the like, a hub cache, or what nanochat, nanoGPT, "
            "litgpt, OLMo, OLMo-core, torchtitan, GPT-NeoX and nanotron save",
            remedy="for files of tensors (.pt, .ckpt, .safetensors) give their model's configuration: --architecture "
            "CONFIG; save other formats with save_pretrained; list folders of other names in a trajectory.yaml; "
            "give remote ones as hub:org/name@{rev,rev} or suite:NAME",
        )
    runs = [
        replace(run, checkpoints=tuple(with_family(checkpoint, run.home) for checkpoint in run.checkpoints))
        for run in _grouped((_name(checkpoint, folder), _home(checkpoint), counted(checkpoint)) for checkpoint in found)
    ]
    runs = _with_branches(runs)
    if layer:
        runs = _corrected(layer, runs)
    return _own_corrections(runs, folder)


def _folder(root: str | Path) -> Path:
    """The absolute path of a folder that is there and not empty.  Raises EmptyFolderError."""
    folder, given = Path(os.path.abspath(root)), repr(str(root))
    if not str(root).strip():
        raise EmptyFolderError("the name of the folder is empty", got=given, remedy="for the current folder write .")
    if folder.is_file():
        remedy = f"give its folder: {shlex.quote(str(Path(root).parent))}"
        if _ARCHIVE.search(folder.name):
            remedy = "unpack it, and give the folder with the checkpoints"
        raise EmptyFolderError("a file, not a folder of checkpoints", got=given, remedy=remedy)
    if not folder.is_dir():
        siblings = [child.name for child in subfolders(folder.parent)] if folder.parent.is_dir() else []
        remedy = did_you_mean(folder.name, siblings) or "give a folder with checkpoints"
        raise EmptyFolderError("no such folder", got=given, remedy=remedy)
    if all(child.name.startswith(".") for child in folder.iterdir()):
        raise EmptyFolderError("an empty folder", got=given, remedy="give a folder with checkpoints")
    return folder


def _walk(folder: Path, formats: Sequence[CheckpointFormat], depth: int, claimed: set[Path]) -> Iterator[Checkpoint]:
    """The checkpoints in `folder` and below; `claimed` keeps links from being counted twice."""
    layer = read_overrides(folder)
    if layer and layer.checkpoints:
        yield from _listed(folder, layer.checkpoints)
        return
    found = [checkpoint for form in formats if not form.scheme for checkpoint in form.discover(folder)]
    found.sort(key=lambda checkpoint: Path(checkpoint.location).is_symlink())
    fresh: dict[Path, Checkpoint] = {}
    for checkpoint in found:
        if (place := Path(checkpoint.location).resolve()) not in claimed:
            fresh.setdefault(place, checkpoint)
    home = folder.resolve()
    inside = {place for place in fresh if place.is_file() and place.is_relative_to(home)}
    claimed |= {*fresh, *(home / place.relative_to(home).parts[0] for place in inside)}  # with the folder of a file
    whole = fresh.pop(folder.resolve(), None)
    yield from fresh.values()
    if whole is not None:
        yield _beside(whole, list(fresh.values())) if fresh else whole
    yield from _unnumbered(folder, list(fresh.values()), claimed)
    if depth < MAX_DEPTH and (fresh or whole is None):
        for child in subfolders(folder):
            if child.resolve() not in claimed:
                yield from _walk(child, formats, depth + 1, claimed)


def _beside(model: Checkpoint, members: Sequence[Checkpoint]) -> Checkpoint:
    """A model in the folder of `members`: the last point of their run, or a run of its own if it is another model.

    Its place is what its trainer_state.json says, never the name of the run's folder.
    """
    form = plugins.get("checkpoints", model.format)()
    model = replace(form.describe(Path(model.location), Position(None)), revision=ROOT)
    sizes = {counted(member).params for member in members if Path(member.location).parent == Path(model.location)}
    same = {member.run for member in members} == {""} and {counted(model).params, None} >= sizes - {None}
    model = _asking(model, "the model in the run's folder")
    return model if same else replace(model, run="./root")


def _unnumbered(folder: Path, members: Sequence[Checkpoint], claimed: set[Path]) -> Iterator[Checkpoint]:
    """Models in folders such as `final` beside numbered `members`, if they are of the same size; these are claimed.

    Among several runs, one belongs to the folder's own (`checkpoint-N`) or the only one of its size.  Where there are
    several such runs it is a run of its own, and says why.
    """
    sizes: dict[str, set[int | None]] = defaultdict(lambda: {None})
    for member in members:
        sizes[member.run].add(counted(member).params)
    if not all(run == "" or run.startswith("./") for run in sizes):
        return
    form = plugins.get("checkpoints", "single")()
    for child in subfolders(folder):
        if child.resolve() in claimed or not _LAST.fullmatch(child.name) or not holds_weights(child):
            continue
        model = replace(form.describe(child, Position(None)), revision=f"{ROOT}/{child.name}")
        owners = [run for run, own in sizes.items() if own <= {counted(model).params, None}]
        owners = [""] if "" in owners else owners
        if owners:
            claimed.add(child.resolve())
            what = f"the model in {child.name}"
            yield _asking(replace(model, run=owners[0]), what) if len(owners) == 1 else _unowned(model, what, owners)


def _unowned(model: Checkpoint, what: str, owners: Sequence[str]) -> Checkpoint:
    """A model that may belong to several runs of its folder: a run of its own."""
    names = ", ".join(sorted(run.removeprefix("./") for run in owners))
    note = _OF_SEVERAL.format(what=what, runs=names)
    model = replace(model, run=model.revision)
    return replace(model, tokens_note=note) if model.tokens is None else model.with_problem("model_beside", note)


def _asking(model: Checkpoint, what: str) -> Checkpoint:
    return replace(model, tokens_note=_NO_STEP.format(what=what)) if model.step is None else model


def _listed(folder: Path, places: Mapping[str, Place]) -> Iterator[Checkpoint]:
    """The checkpoints that the folder's trajectory.yaml lists, and no others."""
    form = plugins.get("checkpoints", "single")()
    for name, place in places.items():
        path = folder / name
        if not path.is_dir() or not holds_model(path):
            require_known([name], [child.name for child in subfolders(folder) if holds_model(child)], "checkpoint")
        checkpoint = replace(form.describe(path, Position(place.step, stage=place.stage)), revision=name.strip("/"))
        kept = tuple(p for p in checkpoint.problems if place.step is None or p.code != "step_disagrees")
        checkpoint = replace(checkpoint, problems=kept)  # the file corrects what trainer_state.json says
        if place.tokens is not None:
            note = "given for this checkpoint"
            checkpoint = replace(checkpoint, tokens=place.tokens, tokens_source="user", tokens_note=note)
        yield checkpoint


def _home(checkpoint: Checkpoint) -> Path | None:
    """The folder of a checkpoint's run; None where the format names the run, as in a hub cache."""
    if checkpoint.run and not checkpoint.run.startswith("./"):
        return None
    location = Path(checkpoint.location)
    if checkpoint.revision.startswith(f"{ROOT}/"):
        return location.parent
    known = checkpoint.step is not None or checkpoint.tokens_source in ("label", "user")
    placed = checkpoint.run or known or checkpoint.format == Numbered.name
    if checkpoint.revision == ROOT or not placed:
        return location.parent if location.is_file() else location
    return location.parents[checkpoint.revision.count("/")]


def _name(checkpoint: Checkpoint, root: Path) -> str:
    """The name of a checkpoint's run: its folder relative to the root, or what the format says."""
    home = _home(checkpoint)
    if home is None:
        return checkpoint.run
    name = home.resolve().name or "run"
    if home != root and home.is_relative_to(root):
        name = home.relative_to(root).as_posix()
    return name + checkpoint.run.removeprefix(".")


def _grouped(found: Iterable[tuple[str, Path | None, Checkpoint]]) -> list[_Run]:
    """One `_Run` per name and home, each in order of stage and numeric step, each location once."""
    groups: dict[tuple[str, Path | None], dict[tuple[str, str], Checkpoint]] = defaultdict(dict)
    for name, home, checkpoint in found:
        groups[name, home][checkpoint.location, checkpoint.revision] = replace(checkpoint, run=name)
    return [_Run(name, home, tuple(sorted(group.values(), key=_order))) for (name, home), group in groups.items()]


def _order(checkpoint: Checkpoint) -> tuple[object, ...]:
    step, tokens = checkpoint.step, checkpoint.tokens
    place = (step is None, step or 0, beside(checkpoint), tokens or 0)
    last = beside(checkpoint) and step is None
    return (last, stage_order(checkpoint.stage), *place, name_order(checkpoint.revision))


def _own_corrections(runs: Sequence[_Run], root: Path) -> list[_Run]:
    """Under the files in the runs' own folders, which speak of more steps than are here where `root` is one of them."""
    homes: dict[Path | None, list[_Run]] = defaultdict(list)
    for run in runs:
        homes[run.home].append(run)
    corrected = []
    for home, own in homes.items():
        layer = read_overrides(home) if home and home != root else None
        corrected += _corrected(layer, own, whole=home not in root.parents) if layer else own
    return corrected


def _corrected(
    layer: Overrides, runs: Sequence[_Run], whole: bool = True, error: type[PtqEvalError] = TrajectoryFileError
) -> list[_Run]:
    require_known(layer.runs, [run.name for run in runs], "run")
    per_step = {run.name: layer.runs.get(run.name, layer).tokens_per_step or layer.tokens_per_step for run in runs}
    runs = [
        replace(run, checkpoints=with_numbers_as_steps(run.checkpoints)) if per_step[run.name] else run for run in runs
    ]
    if whole:
        layer.check_steps({checkpoint.step for run in runs for checkpoint in run.checkpoints}, error)
    corrected = []
    for run in runs:
        checkpoints = layer.apply(run.checkpoints, error)
        if own := layer.runs.get(run.name):
            own.check_steps({checkpoint.step for checkpoint in run.checkpoints}, error)
            checkpoints = own.apply(checkpoints, error)
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
