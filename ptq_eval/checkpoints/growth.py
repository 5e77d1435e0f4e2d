"""How a count of tokens grows with the step, and what is wrong where it does not grow as it should.

A counter may start again at 0 when training is resumed: one that restarts at step r holds, at step s, the tokens of
s − r steps.  That shows between two checkpoints of a run (`with_whole_counts`): the counter falls, or
it grows by fewer tokens per step than before, and a restart in between explains just what is missing.  What was
counted before is then added, with a warning.  Where no later checkpoint confirms the restart, or the first checkpoint
comes after it, another size of the batch would look the same, so that is only warned of (`_doubtful`).  Restarts that
lose less than 3 % of D are not noticed, nor are those that a batch growing in several steps would explain.

A single D that is wrong looks like neither: the steps around it grow as if it were not there (`off_line`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ptq_eval.config.options import TOKENS_PER_STEP
from ptq_eval.records import Checkpoint

SEEN, FLOS = "num_input_tokens_seen", "total_flos"
"""The two counters of trainer_state.json from which D is read."""
COUNTER_RESTART, COUNTER_UNIT = "counter_restart", "counter_unit"
REMEDY = "give --tokens-per-step, --tokens or a trajectory.yaml"
FEWEST = 8
"""Fewer tokens per step than any training has: a count of steps, or of the samples of small batches."""
STEADY = 0.01
"""Two rates of tokens per step that differ by less than this share are the same."""
LOST = 0.03
"""The least share of D whose loss is noticed."""
FAR = 0.5
"""Tokens per step are far below the usual ones from this share on, where those are not steady."""
WHOLE = 1e-6
"""How near to a whole number of steps at the usual rate a count is, if it was made of whole steps."""


SMALL_BATCH = 0.125
"""Batches that grow begin at this share of their last size or above, as a rule."""
ON_LINE = 0.05
"""Growth that differs by less than this share is that of one line."""


@dataclass(frozen=True)
class Reading:
    """A count of tokens at a step."""

    step: int
    tokens: int

    def rate(self, since: Reading) -> float:
        """Tokens per step since an earlier reading."""
        return (self.tokens - since.tokens) / (self.step - since.step)


START = Reading(0, 0)


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
        if beside and all(_same(rate, across, ON_LINE) for rate in beside):
            implied.append(before[-1].tokens + across * (reading.step - before[-1].step))
        whole = [later.rate(START) for later in after]
        implied += [rate * reading.step for rate, other in pairwise(whole) if _same(rate, other)]
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
    return with_doubted_unit(with_whole_counts(without_impossible(run)))


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
    if any(later.step <= earlier.step for earlier, later in pairwise(readings)):
        return {}
    wrong = off_line(readings)  # a wrong count is no restart
    counted = [checkpoint for index, checkpoint in enumerate(counted) if index not in wrong]
    readings = [reading for index, reading in enumerate(readings) if index not in wrong]
    restarts = _restarts(readings)
    changed = {}
    for index, checkpoint in enumerate(counted):
        past = [restart for at, restart in restarts.items() if at <= index]
        if past:
            changed[checkpoint.location] = _completed(checkpoint, past[-1], noticed=index in restarts)
    for index, doubt in _doubtful(readings, restarts).items():
        checkpoint = changed.get(counted[index].location, counted[index])
        changed[checkpoint.location] = checkpoint.with_problem(
            COUNTER_RESTART,
            f"{counter} grows by {doubt.rate:,.0f} tokens per step up to here and by {doubt.usual:,.0f} elsewhere: "
            f"either the batch had another size, or the counter started again at step {doubt.step:,}, when training "
            f"was resumed, and D lacks the tokens before, here and later; in that case {REMEDY}",
        )
    return changed


def _restarts(readings: Sequence[Reading]) -> dict[int, Reading]:
    """{index of the first reading after a restart: (the step of the restart, D there)}."""
    restarts: dict[int, Reading] = {}
    start, whole = START, 0
    for index in range(1, len(readings)):
        earlier, reading = readings[index - 1], readings[index]
        rate = earlier.tokens / (earlier.step - start.step)
        step = _restart(earlier, reading, readings[index + 1 : index + 2], rate)
        if step is not None:
            whole += earlier.tokens + round(rate * (step - earlier.step))
            start = restarts[index] = Reading(step, whole)
    return restarts


def _restart(earlier: Reading, reading: Reading, later: Sequence[Reading], rate: float) -> int | None:
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


@dataclass(frozen=True)
class _Doubt:
    """Tokens per step up to a reading and elsewhere, and the step of the restart that would explain the difference."""

    rate: float
    usual: float
    step: int


def _doubtful(readings: Sequence[Reading], restarts: Collection[int]) -> dict[int, _Doubt]:
    """By index, the readings whose slow growth a possible restart would explain."""
    starts = [START, *readings]
    rates = {at: reading.rate(starts[at]) for at, reading in enumerate(readings) if at not in restarts}
    found = {}
    for at, rate in rates.items():
        usual, steady = _usual(rates, at)
        if usual <= rate or any(_same(rates[near], rate) for near in (at - 1, at + 1) if near in rates):
            continue  # a rate that stays means another batch size
        counted = readings[at].tokens / usual
        lost = readings[at].step - counted
        whole = abs(counted - round(counted)) < WHOLE
        far = FAR if at else SMALL_BATCH
        large = lost >= LOST * readings[at].step if steady or whole else rate < far * usual
        if large and lost >= starts[at].step - 1:
            found[at] = _Doubt(rate, usual, round(lost))
    return found


def _usual(rates: Mapping[int, float], at: int) -> tuple[float, bool]:
    """The highest rate before reading `at`, and whether another one is the same.

    Of the first reading, the highest one after it, or 0 where the rates rise more than once: a growing batch.
    """
    others = [rate for place, rate in rates.items() if (place < at if at else place > 0)]
    usual = max(others, default=0.0)
    rises = [rate for rate in others if rate > rates[at] and not _same(rate, rates[at])]
    if at == 0 and rises and not _same(rises[0], usual):
        usual = 0.0
    return usual, sum(_same(rate, usual) for rate in others) > 1


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


def _same(rate: float, other: float, share: float = STEADY) -> bool:
    return abs(rate - other) <= share * abs(other)
