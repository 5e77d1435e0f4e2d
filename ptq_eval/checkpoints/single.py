"""One checkpoint folder alone: a model saved by `save_pretrained`, in a folder of any name.

A label that some format can read (`checkpoint-500`, `step1000/model/hf`) places the checkpoint, whether it is the name
of its folder or of one above, so that a single member of a trajectory keeps its step and D.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ptq_eval.checkpoints.base import BELOW_NUMBER, CheckpointFormat, Position, holds_weights, read_label
from ptq_eval.models.loading import INNER
from ptq_eval.records import Checkpoint


class Single(CheckpointFormat):
    """The folder itself is the checkpoint."""

    name = "single"
    looks_like = "a folder that is itself a checkpoint"
    fallback = True

    def discover(self, root: Path) -> list[Checkpoint]:
        """The folder as one checkpoint, or nothing where it holds no weights."""
        if not holds_weights(root):
            return []
        for home in (root, *root.parents[: BELOW_NUMBER if root.name.lower() in INNER else 1]):
            if position := read_label(home.parent.name, home.name):
                revision = root.relative_to(home.parent).as_posix()
                return [replace(self.describe(root, position), revision=revision)]
        return [self.describe(root, Position(None))]
