"""OLMo's `step1000-tokens4B`, `stage1-step1000-tokens3B` and `stage2-ingredient1-step1000-tokens5B`.

A label's tokens are rounded to 10^9, which is a relative error of 100 % early on.  Where the model's batch is
known and step × batch agrees with the label to 10^9, the product is taken instead.  In stage 2 steps and
tokens restart at 0, in several parallel branches (ingredients); the length of stage 1 is added where it is
known, else D is unknown: a stage-relative count among absolute ones would be wrong by three orders of
magnitude.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ptq_eval.checkpoints.base import UNKNOWN_TOKENS, CheckpointFormat, Position

_LABEL = re.compile(r"(?:stage(\d+)-(?:ingredient(\d+)-)?)?step(\d+)-tokens(\d+)B")
_BILLION = 10**9


@dataclass(frozen=True)
class _Model:
    """A published model: pattern of its name, tokens per step, and the step of its last stage-1 label."""

    pattern: str
    batch: int
    stage1_steps: int | None = None


_MODELS = (
    _Model(r"olmo-2-0425-1b", 512 * 4096, 1_907_359),
    _Model(r"olmo-2-1124-7b", 1024 * 4096, 928_646),
    _Model(r"olmo-2-1124-13b", 2048 * 4096, 596_057),
    _Model(r"olmo-3-\d+-7b", 1024 * 4096),
    _Model(r"olmo-1b(-hf)?", 2048 * 2048),
)


class OLMo(CheckpointFormat):
    """Steps with a rounded token count in the label, in one or two stages."""

    name = "olmo"

    def position(self, model: str, label: str) -> Position | None:
        """Step, D and stage; D is derived where the batch is known and agrees with the label."""
        match = _LABEL.fullmatch(label)
        if not match:
            return None
        stage, ingredient, step, billions = match.groups()
        known = _known(model)
        position = _counted(int(step), int(billions), known)
        if stage is None:
            return position
        position = replace(position, stage=f"stage{stage}" + (f"-ingredient{ingredient}" if ingredient else ""))
        return position if stage == "1" else _after_stage_1(position, known if stage == "2" else None)


def _known(model: str) -> _Model | None:
    name = model.rpartition("/")[2].rpartition("--")[2]
    return next((known for known in _MODELS if re.fullmatch(known.pattern, name, re.IGNORECASE)), None)


def _counted(step: int, billions: int, known: _Model | None) -> Position:
    labelled = billions * _BILLION
    if known and abs(step * known.batch - labelled) <= _BILLION:
        note = f"step × {known.batch:,}, which agrees with the label ({billions}B)"
        return Position(step, step * known.batch, "derived", note)
    return Position(step, labelled, "label", "rounded to 10^9 in the label")


def _after_stage_1(position: Position, known: _Model | None) -> Position:
    if known is None or known.stage1_steps is None or position.tokens is None:
        note = f"counted from the start of {position.stage}, and what came before is not known; {UNKNOWN_TOKENS}"
        return replace(position, tokens=None, source="unknown", note=note)
    before = known.stage1_steps * known.batch
    note = f"{position.note}; plus {before:,} of stage 1"
    return replace(position, tokens=position.tokens + before, note=note)
