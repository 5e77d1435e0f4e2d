"""One checkpoint folder alone: a model saved by `save_pretrained`, in a folder of any name.

Where its name or that of the folder above is a label that some format can read (`checkpoint-500`, `step1000/hf`),
the checkpoint is placed by it, so that a single member of a trajectory keeps its step and D.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ptq_eval.checkpoints.base import CheckpointFormat, Position, holds_weights, read_label
from ptq_eval.records import Checkpoint


class Single(CheckpointFormat):
    """The folder itself is the checkpoint."""

    name = "single"
    fallback = True

    def discover(self, root: Path) -> list[Checkpoint]:
        """The folder as one checkpoint, or nothing where it holds no weights."""
        if not holds_weights(root):
            return []
        position = read_label(root.parent.name, root.name)
        if position is None and (above := read_label(root.parent.parent.name, root.parent.name)):
            checkpoint = self.describe(root, above)
            return [replace(checkpoint, revision=f"{root.parent.name}/{root.name}")]
        return [self.describe(root, position or Position(None))]
