"""Pythia's `stepN`: step × 2,097,152 tokens (1,024 sequences of 2,048) in every model of the suite.

Early `-v0` models were trained with twice the batch, but their revisions were renamed so that the same rule
holds.  The repositories with another batch carry it in their name, `-0.5MtokBS`, counted in units of 2^20
tokens.  Any other folder of `stepN` is read too, but only a Pythia name says how many tokens a step saw.
"""

from __future__ import annotations

import re

from ptq_eval.checkpoints.base import CheckpointFormat, Position, steps_of

TOKENS_PER_STEP = 1024 * 2048

_MODEL = re.compile(
    r"pythia-\d+(?:\.\d+)?[mb](?:-deduped)?(?:-v0)?(?:-seed\d+)?(?:-(\d+(?:\.\d+)?)mtokbs)?", re.IGNORECASE
)


class Pythia(CheckpointFormat):
    """`stepN`, with tokens where the run is named after a Pythia model."""

    name = "pythia"

    def position(self, model: str, label: str) -> Position | None:
        """The step, and D for a Pythia model."""
        match = re.fullmatch(r"step(\d+)", label)
        if not match:
            return None
        known = _MODEL.fullmatch(model.rpartition("/")[2].rpartition("--")[2].removeprefix("EleutherAI_"))
        if not known:
            return steps_of(int(match[1]), None, "")
        batch = round(float(known[1]) * 2**20) if known[1] else TOKENS_PER_STEP
        return steps_of(int(match[1]), batch, "Pythia's batch")
