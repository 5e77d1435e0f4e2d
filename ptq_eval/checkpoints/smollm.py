"""SmolLM's `step-N`, and SmolLM3's `stage1-step-N`, whose steps run on across its stages.

Tokens per step are known for SmolLM2-135M (1,048,576) and SmolLM3-3B (2,359,296).  The other sizes have
batches of their own, so their D stays unknown until it is given.
"""

from __future__ import annotations

import re
from dataclasses import replace

from ptq_eval.checkpoints.base import CheckpointFormat, Position, steps_of

_TOKENS_PER_STEP = {
    r"smollm2-135m(-intermediate-checkpoints)?": 1_048_576,
    r"smollm3-3b(-checkpoints)?": 2_359_296,
}


class SmolLM(CheckpointFormat):
    """`step-N` or `stageK-step-N`."""

    name = "smollm"

    def position(self, model: str, label: str) -> Position | None:
        """The step, the stage, and D for the two models whose batch is known."""
        match = re.fullmatch(r"(?:(stage\d+)-)?step-(\d+)", label)
        if not match:
            return None
        name = model.rpartition("/")[2].rpartition("--")[2]
        batches = (n for pattern, n in _TOKENS_PER_STEP.items() if re.fullmatch(pattern, name, re.IGNORECASE))
        return replace(steps_of(int(match[2]), next(batches, None), "SmolLM's batch"), stage=match[1] or "")
