"""Folders of the Hugging Face Trainer: `checkpoint-500/`, each with a `trainer_state.json`.

The label gives the step alone; tokens, learning rate and schedule phase come from `trainer_state.json`, which
`trainer_state` reads for every format.  Optimizer state and the pickled `training_args.bin` are never opened.
"""

from __future__ import annotations

import re

from ptq_eval.checkpoints.base import CheckpointFormat, Position
from ptq_eval.checkpoints.stamps import is_date


class HFTrainer(CheckpointFormat):
    """`checkpoint-N`."""

    name = "hf_trainer"
    looks_like = "checkpoint-N"

    def position(self, model: str, label: str) -> Position | None:
        """The step that the label says; a date is none."""
        match = re.fullmatch(r"checkpoint-(\d+)", label)
        return Position(int(match[1])) if match and not is_date(match[1]) else None
