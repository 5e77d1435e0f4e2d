"""Amber's `ckpt_000` to `ckpt_359`: an index of equal chunks of data, not a step.

Each chunk holds 1,706,976 sequences of 2,048 tokens, and the checkpoint is taken after its chunk, so that
D = (index + 1) × 3,495,886,848.  The index stands in for the step.
"""

from __future__ import annotations

import re

from ptq_eval.checkpoints.base import CheckpointFormat, Position

TOKENS_PER_CHUNK = 1_706_976 * 2048


class Amber(CheckpointFormat):
    """`ckpt_NNN`, with tokens where the run is called Amber."""

    name = "amber"

    def position(self, model: str, label: str) -> Position | None:
        """The index, and D for Amber."""
        match = re.fullmatch(r"ckpt_(\d+)", label)
        if not match:
            return None
        index = int(match[1])
        if "amber" not in model.rpartition("/")[2].lower():
            return Position(index)
        note = f"(index + 1) × {TOKENS_PER_CHUNK:,} (Amber's chunk)"
        return Position(index, (index + 1) * TOKENS_PER_CHUNK, "derived", note)
