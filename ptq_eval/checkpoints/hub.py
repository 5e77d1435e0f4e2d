"""Revisions on the Hugging Face hub: `hub:org/name@step1000`, `hub:org/name@{step1000,step2000}`, `hub:org/name@step*`.

The id alone says which checkpoints there are, so discovering them needs no network, unless a revision has a `*`: then
the hub is asked for its revisions.  Weights are fetched into the usual cache when a checkpoint is first opened.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from ptq_eval.checkpoints import remote
from ptq_eval.checkpoints.base import CheckpointFormat, Position, read_label
from ptq_eval.checkpoints.numbered import place_revision
from ptq_eval.errors import NoCheckpointError
from ptq_eval.records import Checkpoint

_ID = re.compile(r"hub:(?P<model>[\w.-]+(?:/[\w.-]+)?)(?:@(?:\{(?P<many>[^{}]+)\}|(?P<one>[^{}]+)))?")


class Hub(CheckpointFormat):
    """`hub:` ids with one or several revisions; without any, `main`."""

    name = "hub"
    looks_like = "hub:MODEL@{REVISION,REVISION}; without revisions, main"
    scheme = "hub"

    def discover(self, root: Path | str) -> list[Checkpoint]:
        """One checkpoint per revision, in the order given.

        Raises NoCheckpointError for a malformed id, and HubError where the hub has to be asked and cannot be.
        """
        match = _ID.fullmatch(str(root))
        if not match:
            raise NoCheckpointError(
                "not a hub id",
                got=root,
                allowed="hub:org/name, hub:org/name@rev, hub:org/name@{rev,rev}, hub:org/name@step*",
            )
        model = match["model"]
        names = match["many"].split(",") if match["many"] else [match["one"] or "main"]
        found: dict[str, Checkpoint] = {}
        for name in filter(None, map(str.strip, names)):
            own = listed(model, lambda ref, pattern=name: fnmatchcase(ref, pattern)) if "*" in name else []
            for checkpoint in own if "*" in name else [checkpoint_of(model, name)]:
                found.setdefault(checkpoint.revision, checkpoint)
        if not found:
            raise NoCheckpointError("no revision with a step or D in its name", got=root, remedy="name the revisions")
        return list(found.values())

    def local_path(self, checkpoint: Checkpoint) -> Path:
        """Fetch the revision into the hub's cache.  Raises HubError where that fails."""
        return remote.fetched(model_of(checkpoint), checkpoint.revision)

    def small_path(self, checkpoint: Checkpoint) -> Path:
        """Fetch configuration and tokenizer alone.  Raises HubError where that fails."""
        return remote.fetched(model_of(checkpoint), checkpoint.revision, weights=False)

    def copy_of(self, checkpoint: Checkpoint) -> Path:
        """The snapshot in the hub's cache that the revision is, or will be.  Raises HubError."""
        model = model_of(checkpoint)
        return remote.snapshot(model, checkpoint.commit or remote.commit_of(model, checkpoint.revision))

    def remove(self, copy: Path, kept: frozenset[str]) -> None:
        """Delete a snapshot's files except those `kept`, and the blobs that no other snapshot uses."""
        remote.remove(copy, kept)


def with_all_revisions(root: str | Path) -> str | Path:
    """A root as it is, but every revision of a hub id that names none."""
    match = _ID.fullmatch(str(root))
    return f"{root}@*" if match and not (match["many"] or match["one"]) else root


def listed(model: str, chosen: Callable[[str], bool]) -> list[Checkpoint]:
    """The checkpoints of the repository's revisions that are `chosen` by name and say a step or D.  Raises HubError."""
    return [
        replace(checkpoint_of(model, name), commit=commit)
        for name, commit in remote.refs(model).items()
        if chosen(name) and (position := read_label(model, name)) and (position.step, position.tokens) != (None, None)
    ]


def checkpoint_of(model: str, revision: str) -> Checkpoint:
    """The checkpoint that a revision is."""
    run, position = place_revision(model, revision, read_label(model, revision))
    location = Path(f"hub:{model}@{revision}")
    return replace(Hub().describe(location, position or Position(None)), run=run, revision=revision)


def model_of(checkpoint: Checkpoint) -> str:
    """The repository of a checkpoint on the hub."""
    return checkpoint.location.removeprefix("hub:").partition("@")[0]
