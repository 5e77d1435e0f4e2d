"""One checkpoint folder alone: a model saved by `save_pretrained`, in a folder of any name.

Where the name is a label that some format can read (`checkpoint-500`, `step1000`), the checkpoint is placed
by it, so that a single member of a trajectory keeps its step and D.
"""

from __future__ import annotations

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
        return [self.describe(root, read_label(root.parent.name, root.name) or Position(None))]
