"""Folders and revisions numbered in any way: `step_98`, `iter_0000098/hf`, `98`, `epoch_1`, `stage1-step98-tokens5B`.

Sibling folders whose names differ in a number make one run, in order of that number.  Different stems
(`small-step98`, `large-step98`) and models of different sizes are separate runs.  Where the names are those of a
public suite, its rule gives D; otherwise a count in the name does, and failing that D is asked for once per run.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from ptq_eval import units
from ptq_eval.checkpoints import labels, suites
from ptq_eval.checkpoints.base import CheckpointFormat, Position, counted, holds_model, holds_weights, subfolders
from ptq_eval.checkpoints.placing import place, title
from ptq_eval.errors import PtqEvalError
from ptq_eval.models.counts import read_config
from ptq_eval.records import Checkpoint

_Groups = dict[tuple[str, int | None], list[Checkpoint]]
"""Checkpoints by the stem of their names and the model's N."""
_GENERIC = {"hf", "checkpoints", "checkpoint", "ckpts", "ckpt", "models", "weights", "output", "outputs", "snapshots"}
"""Names of folders that say nothing about the model; the folder above is asked."""


class Numbered(CheckpointFormat):
    """Any name with a number whose meaning is known, or in which siblings differ."""

    name = "numbered"
    fallback = True

    def position(self, model: str, label: str) -> Position | None:
        """What the label says, with D where a public suite's rule or the label itself gives it."""
        found = labels.read(label)
        return place(model, label, found) if found else None

    def discover(self, root: Path) -> list[Checkpoint]:
        """The numbered checkpoints inside `root`, up to one folder below their number."""
        folders = _folders(root)
        model = root.parent.name if root.name.lower() in _GENERIC else root.name
        read = labels.read_siblings(name.partition("/")[0] for name in folders)
        groups: _Groups = defaultdict(list)
        for name, folder in folders.items():
            first, _, below = name.partition("/")
            if label := read.get(first):
                checkpoint = self.describe(folder, place(model, first, label))
                checkpoint = counted(replace(checkpoint, revision=name))
                groups[f"{label.stem}/{below}".strip("/"), checkpoint.params].append(checkpoint)
        return _named(_joined(groups))

    def describe(self, folder: Path, position: Position) -> Checkpoint:
        """With D by the batch that `_name_or_path` of config.json states, where nothing better is known."""
        checkpoint = super().describe(folder, position)
        if checkpoint.tokens is not None or checkpoint.step is None:
            return checkpoint
        try:
            stated = suites.from_path(str(read_config(folder).get("_name_or_path") or ""))
        except PtqEvalError:
            return checkpoint
        if stated is None:
            return checkpoint
        suite, per_step = stated
        note = f"{title(suite)}: step × {per_step:,}, by _name_or_path of config.json"
        return replace(checkpoint, tokens=checkpoint.step * per_step, tokens_source="derived", tokens_note=note)


def _folders(root: Path) -> dict[str, Path]:
    """The folders that may be checkpoints, by name relative to `root`; those that hold the rest of it excepted."""
    found = {}
    for child in subfolders(root):
        if holds_model(child):
            found[child.name] = child
        elif labels.read(child.name):
            below = [folder for folder in subfolders(child) if holds_weights(folder) and not labels.read(folder.name)]
            found |= {f"{child.name}/{folder.name}": folder for folder in below}
    return found


def _joined(groups: _Groups) -> _Groups:
    """Without groups that are no run: one of unknown size joins the only other of its stem, and a name is read by
    its siblings only if there are any."""
    for stem in [stem for stem, size in groups if size is None]:
        sizes = [size for other, size in groups if other == stem and size is not None]
        if len(sizes) == 1:
            groups[stem, sizes[0]] += groups.pop((stem, None))
    return {
        key: group
        for key, group in groups.items()
        if len(group) > 1 or labels.read(group[0].revision.partition("/")[0])
    }


def _named(groups: _Groups) -> list[Checkpoint]:
    """The checkpoints of all groups; of several, each is a run named after its stem, and its size if need be."""
    named = []
    for (stem, size), group in groups.items():
        run = f"./{stem or 'numbers'}" if len(groups) > 1 else ""
        if size is not None and sum(other == stem for other, _ in groups) > 1:
            run += f"-{units.write(size, digits=None)}"
        named += [replace(checkpoint, run=run) for checkpoint in group]
    return named
