"""How a count of tokens grows with the step, and what is wrong where it does not grow as it should.

A counter may start again at 0 when training is resumed, and the batch may have another size from then on.  What
happened is not written anywhere, so all histories that explain the counts are compared, see `histories`.  Where they
agree, D is read as it is counted, or completed by what was counted before, with a warning.  From the first checkpoint
on where they do not, D is unknown and a note names the possible ones.

Where D is step × batch, the batch that a checkpoint's files state is that of its end.  If it differs from that of the
checkpoint before, when it changed is not written, so D is unknown from there on (`with_one_batch`).

A single D that is wrong looks like neither: the steps around it grow as if it were not there (`off_line`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import pairwise

from ptq_eval.checkpoints.restarts import ON_LINE, START, STEADY, Reading, histories, one_batch, same
from ptq_eval.config.options import TOKENS_PER_STEP
from ptq_eval.records import Checkpoint

SEEN, FLOS = "num_input_tokens_seen", "total_flos"
"""The two counters of trainer_state.json from which D is read."""
BATCH = "step × batch"
"""The counter of a D that is a step times the tokens per step that the checkpoint's own files state."""
COUNTER_RESTART, COUNTER_UNIT = "counter_restart", "counter_unit"
REMEDY = "give --tokens-per-step, --tokens or a trajectory.yaml"
FEWEST = 8
"""Fewer tokens per step than any training has: a count of steps, or of the samples of small batches."""
FAR = 0.5
"""A D of this share of the implied one, or less, is wrong; also one that is as many times as large."""


def off_line(readings: Sequence[Reading]) -> dict[int, int]:
    """{index: D that the others imply} of readings, in order of step, that are off by more than a factor of two.

    Either the steps before and after it grow as if it were not there, or two later ones have one D per step from the
    start of training, which no earlier batch of another size would leave them.
    """
    found = {}
    for index, reading in enumerate(readings[:-1]):
        before, after = [START, *readings[:index]], readings[index + 1 :]
        implied = []
        across = after[0].rate(before[-1])
        beside = [one.rate(other) for one, other in [*pairwise(before[-2:][::-1]), *pairwise(after[:2][::-1])]]
        if beside and all(same(rate, across, ON_LINE) for rate in beside):
            implied.append(before[-1].tokens + across * (reading.step - before[-1].step))
        whole = [later.rate(START) for later in after]
        implied += [rate * reading.step for rate, other in pairwise(whole) if same(rate, other)]
        if implied and not (_near(reading, implied[0]) or _continues(reading, after)):
            found[index] = round(implied[0])
    return found


def _near(reading: Reading, implied: float) -> bool:
    return implied * FAR <= reading.tokens <= implied / FAR


def _continues(reading: Reading, after: Sequence[Reading]) -> bool:
    """Whether a reading is on the line of the next two, as where an earlier stage is counted too."""
    if len(after) < 2:
        return False
    line = after[0].tokens - after[1].rate(after[0]) * (after[0].step - reading.step)
    return abs(line - reading.tokens) <= ON_LINE * reading.tokens


def with_sound_counts(run: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints of one run, in order of step, with D completed, asked for or doubted as their counters show."""
    return with_doubted_unit(with_one_batch(with_whole_counts(without_impossible(run))))


def without_impossible(run: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints of one run without a D that exceeds what any training sees; it is asked for instead."""
    found = []
    for checkpoint in run:
        if checkpoint.tokens_counter and checkpoint.step and checkpoint.tokens is not None:
            rate = checkpoint.tokens / checkpoint.step
            if rate > TOKENS_PER_STEP.most:
                note = f"{checkpoint.tokens_counter} gives {checkpoint.tokens:.3g} tokens at step {checkpoint.step:,}"
                note += f", more than any batches hold; {REMEDY}"
                checkpoint = replace(
                    checkpoint, tokens=None, tokens_source="unknown", tokens_note=note, tokens_counter=""
                )
        found.append(checkpoint)
    return found


def with_whole_counts(run: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints of one run, in order of step, with D completed where its counter started again."""
    changed = {}
    for counter in (SEEN, FLOS):
        changed |= _with_whole(counter, [c for c in run if c.tokens_counter == counter and c.step])
    return [changed.get(checkpoint.location, checkpoint) for checkpoint in run]


def with_one_batch(run: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints of one run, in order of step, with D = step × batch only as long as all state one batch."""
    found, past, doubt = [], START, ""
    for checkpoint in run:
        step, tokens = checkpoint.step, checkpoint.tokens
        if checkpoint.tokens_counter == BATCH and step and tokens is not None:
            reading = Reading(step, tokens)
            if past.step and not doubt and past.rate(START) != reading.rate(START):
                doubt = _two_batches(past, reading)
            past = reading
            if doubt:
                checkpoint = replace(
                    checkpoint, tokens=None, tokens_source="unknown", tokens_note=doubt, tokens_counter=""
                )
        found.append(checkpoint)
    return found


def _two_batches(past: Reading, reading: Reading) -> str:
    rates = past.rate(START), reading.rate(START)
    ends = sorted(past.tokens + rate * (reading.step - past.step) for rate in rates)
    return (
        f"the batch is {rates[0]:,.0f} tokens at step {past.step:,} and {rates[1]:,.0f} at step {reading.step:,}, "
        f"and when it changed is not stored, so that D at step {reading.step:,} is from {ends[0]:,.0f} to "
        f"{ends[1]:,.0f}; {REMEDY}"
    )


def with_doubted_unit(run: Sequence[Checkpoint]) -> list[Checkpoint]:
    """With a note at the first checkpoint whose counter cannot have counted tokens, by its growth per step."""
    found = list(run)
    for index, checkpoint in enumerate(run):
        if checkpoint.tokens_counter != SEEN or not checkpoint.step or checkpoint.tokens is None:
            continue
        rate = checkpoint.tokens / checkpoint.step
        if rate < FEWEST:
            message = f"{SEEN} says {checkpoint.tokens:,} at step {checkpoint.step:,}, or {rate:,.3g} per step: "
            found[index] = checkpoint.with_problem(
                COUNTER_UNIT, f"{message}it seems to count something other than tokens, so D is wrong too; {REMEDY}"
            )
            break
    return found


def _with_whole(counter: str, counted: Sequence[Checkpoint]) -> dict[str, Checkpoint]:
    """The checkpoints read off one counter, by location; only those that change."""
    readings = [Reading(c.step or 0, c.tokens or 0) for c in counted]
    unordered = any(later.step <= earlier.step or not later.tokens for earlier, later in pairwise([START, *readings]))
    if unordered or all(same(r.rate(START), readings[-1].rate(START), ON_LINE) for r in readings):
        return {}
    wrong = _wrong(readings)
    counted = [checkpoint for index, checkpoint in enumerate(counted) if index not in wrong]
    readings = [reading for index, reading in enumerate(readings) if index not in wrong]
    changed: dict[str, Checkpoint] = {}
    total, restart, doubt = 0, START, ""
    for checkpoint, reading, past, found in zip(counted, readings, [START, *readings], histories(readings)):
        possible = sorted({total + interval.tokens for interval in found})
        if not doubt and possible[-1] - possible[0] > STEADY * possible[-1]:
            doubt = _doubt(counter, past, reading, possible)
        if doubt:
            changed[checkpoint.location] = replace(
                checkpoint, tokens=None, tokens_source="unknown", tokens_note=doubt, tokens_counter=""
            )
            continue
        likely = min(found, key=lambda interval: interval.restart is not None)
        total += likely.tokens
        if likely.restart is not None:
            restart = Reading(likely.restart, total - reading.tokens)
        if restart.tokens:
            changed[checkpoint.location] = _completed(checkpoint, restart, noticed=likely.restart is not None)
    return changed


def _wrong(readings: Sequence[Reading]) -> Collection[int]:
    """The readings that are wrong, rather than followed by a restart: one batch from the start explains all others."""
    wrong = off_line(readings)
    rates = [reading.rate(START) for index, reading in enumerate(readings) if index not in wrong]
    steady = len(wrong) == 1 and len(rates) > 3 and all(same(rate, rates[0]) for rate in rates)
    return wrong if steady and not one_batch(readings) else ()


def _doubt(counter: str, past: Reading, reading: Reading, possible: Sequence[int]) -> str:
    event = "the batch had another size or the counter started again when training was resumed"
    if reading.tokens <= past.tokens:
        event = "the counter started again when training was resumed, at an unknown step or with another batch"
    since = f"after {past.tokens:,} at step {past.step:,}" if past.step else f"by step {reading.step:,}"
    return (
        f"{counter} counts {reading.tokens:,} {since}: {event}, so that D may be "
        f"{' or '.join(f'{tokens:,}' for tokens in possible)}; {REMEDY}"
    )


def _completed(checkpoint: Checkpoint, restart: Reading, noticed: bool) -> Checkpoint:
    tokens = checkpoint.tokens or 0
    counter = checkpoint.tokens_counter
    unit = "" if counter == SEEN else " / (6 · N_hf)"
    note = f"{counter}{unit} + {restart.tokens:,} counted before it started again at step {restart.step:,}"
    if noticed:
        message = (
            f"{counter}{unit} is {tokens:,} here and seems to have started again at step {restart.step:,}, when "
            f"training was resumed; the {restart.tokens:,} tokens before are added, here and later; "
            f"if that is wrong, {REMEDY}"
        )
        checkpoint = checkpoint.with_problem(COUNTER_RESTART, message)
    return replace(checkpoint, tokens=tokens + restart.tokens, tokens_source="derived", tokens_note=note)
