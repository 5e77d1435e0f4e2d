"""A local cache of the Hugging Face hub: `models--org--name/snapshots/<commit>/`, named by `refs/<revision>`.

Each snapshot is one checkpoint, placed by the revisions that point to it under the rule that can read them.
A revision that is only another name of a placed snapshot (`main`, mostly) adds nothing and is skipped; a
snapshot that no revision names keeps its commit as revision, and its D is unknown.  Snapshots without
weights, left behind by fetching a tokenizer or a configuration, are no checkpoints.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ptq_eval.checkpoints.base import CheckpointFormat, Position, holds_weights, read_label, subfolders
from ptq_eval.checkpoints.numbered import place_revision
from ptq_eval.checkpoints.remote import names_of_commits
from ptq_eval.records import Checkpoint


class HubCache(CheckpointFormat):
    """Several revisions of one model, as `huggingface_hub` stores them."""

    name = "hub_cache"
    looks_like = "several revisions of one model, as huggingface_hub stores them"

    def discover(self, root: Path) -> list[Checkpoint]:
        """The snapshots of the model whose cache folder `root` is."""
        if not root.name.startswith("models--") or not (root / "snapshots").is_dir():
            return []
        model = "/".join(root.name.split("--")[1:])
        revisions = names_of_commits(root)
        found = []
        for snapshot in subfolders(root / "snapshots"):
            if holds_weights(snapshot):
                for revision, run, position in _places(model, revisions.get(snapshot.name, [snapshot.name])):
                    found.append(replace(self.describe(snapshot, position), run=run, revision=revision))
        return found


def _places(model: str, revisions: list[str]) -> list[tuple[str, str, Position]]:
    """(revision, run, position) for each label among the names of a snapshot, else for the first name alone."""
    read = [(revision, read_label(model, revision)) for revision in revisions]
    read = [(revision, position) for revision, position in read if position] or [(revisions[0], None)]
    placed = [(revision, *place_revision(model, revision, position)) for revision, position in read]
    return [(revision, run, position or Position(None)) for revision, run, position in placed]
