"""Notice a Trainer's `num_input_tokens_seen` that started again at 0 when training was resumed.

A counter that restarts at step r holds, at step s, the tokens of s − r steps.  That shows between two checkpoints of a
run: the counter falls, or it grows by fewer tokens per step than before, and the missing ones are just those of a
restart in between.  What was counted before is then added, with a warning.  A counter whose steady growth points back
to a step other than 0 has started late; a batch that grew early on looks the same, so that is only warned of.
Restarts that lose less than 3 % of D are not noticed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ptq_eval.records import Checkpoint

COUNTER_RESTART = "counter_restart"
CORRECTION = "if that is wrong, give --tokens-per-step, --tokens or a trajectory.yaml"
STEADY = 0.01
"""Two rates of tokens per step that differ by less than this share are the same."""
LOST = 0.03
"""The least share of D whose loss is noticed."""


@dataclass(frozen=True)
class _Reading:
    """A counter's value at a step."""

    step: int
    tokens: int

    def rate(self, since: _Reading) -> float:
        """Tokens per step since an earlier reading."""
        return (self.tokens - since.tokens) / (self.step - since.step)


def with_whole_counts(run: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints of one run, in order of step, with D completed where the counter started again."""
    counted = [c for c in run if c.tokens_source == "explicit" and c.tokens is not None and c.step]
    readings = [_Reading(c.step or 0, c.tokens or 0) for c in counted]
    if any(later.step <= earlier.step for earlier, later in pairwise(readings)):
        return list(run)
    restarts = _restarts(readings)
    changed = {}
    for index, checkpoint in enumerate(counted):
        past = [restart for at, restart in restarts.items() if at <= index]
        if past:
            changed[checkpoint.location] = _completed(checkpoint, past[-1], noticed=index in restarts)
    if not restarts and (start := _late_start(readings)):
        changed[counted[0].location] = counted[0].with_problem(
            COUNTER_RESTART,
            f"num_input_tokens_seen grows steadily, but from step {start:,} on: if training was resumed there, D lacks "
            f"the tokens before it; {CORRECTION.replace('if that is wrong', 'then')}",
        )
    return [changed.get(checkpoint.location, checkpoint) for checkpoint in run]


def _restarts(readings: Sequence[_Reading]) -> dict[int, _Reading]:
    """{index of the first reading after a restart: (the step of the restart, D there)}."""
    restarts: dict[int, _Reading] = {}
    start, whole = _Reading(0, 0), 0
    for index in range(1, len(readings)):
        earlier, reading = readings[index - 1], readings[index]
        rate = earlier.tokens / (earlier.step - start.step)
        step = _restart(earlier, reading, readings[index + 1 : index + 2], rate)
        if step is not None:
            whole += earlier.tokens + round(rate * (step - earlier.step))
            start = restarts[index] = _Reading(step, whole)
    return restarts


def _restart(earlier: _Reading, reading: _Reading, later: Sequence[_Reading], rate: float) -> int | None:
    """The step between two readings at which the counter started again, or None."""
    if rate <= 0 or _same(reading.rate(earlier), rate):
        return None
    step = round(reading.step - reading.tokens / rate)
    if abs(step - earlier.step) <= STEADY * (reading.step - earlier.step) + 1:
        step = earlier.step
    if reading.tokens < earlier.tokens:
        return step if earlier.step <= step < reading.step else earlier.step
    if not earlier.step <= step < reading.step or rate * step < LOST * rate * reading.step:
        return None
    confirmed = _same(later[0].rate(reading), rate) if later else step == earlier.step
    return step if confirmed else None


def _late_start(readings: Sequence[_Reading]) -> int | None:
    """The step other than 0 to which a steady growth points back, or None."""
    rates = [later.rate(earlier) for earlier, later in pairwise(readings)]
    if not rates or rates[0] <= 0 or not all(_same(rate, rates[0]) for rate in rates):
        return None
    start = round(readings[0].step - readings[0].tokens / rates[0])
    return start if start > LOST * readings[-1].step else None


def _completed(checkpoint: Checkpoint, restart: _Reading, noticed: bool) -> Checkpoint:
    tokens = checkpoint.tokens or 0
    note = f"num_input_tokens_seen + {restart.tokens:,} counted before it started again at step {restart.step:,}"
    if noticed:
        message = (
            f"num_input_tokens_seen is {tokens:,} here and seems to have started again at step {restart.step:,}, when "
            f"training was resumed; the {restart.tokens:,} tokens before are added, here and later; {CORRECTION}"
        )
        checkpoint = checkpoint.with_problem(COUNTER_RESTART, message)
    return replace(checkpoint, tokens=tokens + restart.tokens, tokens_source="derived", tokens_note=note)


def _same(rate: float, other: float) -> bool:
    return abs(rate - other) <= STEADY * abs(other)
