"""What a Hugging Face Trainer's `trainer_state.json` says about a checkpoint.

D is `num_input_tokens_seen` where the Trainer counts tokens (it writes 0 otherwise).  Failing that, the
Trainer's `total_flos` is the sum of 6 · (tokens of a batch) · N_hf, N_hf being
`num_parameters(exclude_embeddings=True)`, which keeps an untied output head; so D = total_flos / (6 N_hf).
The real global batch is not stored, and `step × train_batch_size` would be wrong under accumulation or
several processes, so it is not tried.

Both counters may start again at 0 when training is resumed: one that restarts at step r holds, at step s, the tokens of
s − r steps.  That shows between two checkpoints of a run (`with_whole_counts`): the counter falls, or
it grows by fewer tokens per step than before, and a restart in between explains just what is missing.  What was
counted before is then added, with a warning.  Where no later checkpoint confirms the restart, or the first checkpoint
comes after it, another size of the batch would look the same, so that is only warned of (`_doubtful`).  Restarts that
lose less than 3 % of D are not noticed, nor are those that a batch growing in several steps would explain.

The schedule's phase is read off the logged learning rates up to the checkpoint, unless the file has a
`schedule_phase` of its own.  A learning rate that fell to a tenth of its peak, or is still falling at the
last step of training, counts as annealed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from ptq_eval import units
from ptq_eval.config.options import TOKENS_PER_STEP
from ptq_eval.errors import PtqEvalError, TrajectoryFileError
from ptq_eval.models.json_files import load_json
from ptq_eval.models.parameters import count_parameters
from ptq_eval.records import Checkpoint, Source

PHASES = ("warmup", "constant", "decay", "annealed", "averaged")
ANNEALED_SHARE = 0.1
"""A learning rate at or below this share of its peak has been annealed (the usual floor of a cosine)."""


def with_trainer_state(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """The checkpoint completed from `folder/trainer_state.json`, or as it was where there is none."""
    path = folder / "trainer_state.json"
    if not path.is_file():
        return checkpoint
    try:
        state = load_json(path)
        if not isinstance(state, dict) or "global_step" not in state:
            what = "it has no global_step" if isinstance(state, dict) else "it is not a JSON object"
            return checkpoint.with_problem("unreadable_state", f"{path.name} cannot be read: {what}")
        counts = {name: _count(name, state.get(name) or 0) for name in _COUNTS}
        step = counts["global_step"]
        rates = {at: rate for at, rate in map(_rate, state.get("log_history") or ()) if at <= step}
    except TrajectoryFileError as error:
        return checkpoint.with_problem("unreadable_state", f"{path.name} cannot be read: {error.what}, got {error.got}")
    except (OSError, ValueError, OverflowError, RecursionError, KeyError, TypeError, AttributeError) as error:
        return checkpoint.with_problem("unreadable_state", f"{path.name} cannot be read: {error!r}")
    if checkpoint.step is not None and checkpoint.step != step:
        checkpoint = checkpoint.with_problem(
            "step_disagrees",
            f"the folder says step {checkpoint.step}, {path.name} says {step}",
            fatal=True,
        )
    tokens, counter, note = _tokens(counts, step, folder)
    if tokens is not None and (counter == SEEN or checkpoint.tokens is None):
        source: Source = "explicit" if counter == SEEN else "derived"
        checkpoint = replace(checkpoint, tokens=tokens, tokens_source=source, tokens_note=note, tokens_counter=counter)
    last = step > 0 and step == counts["max_steps"]
    return replace(
        checkpoint,
        step=step if checkpoint.step is None else checkpoint.step,
        epochs=_epochs(state.get("epoch")),
        learning_rate=rates[max(rates)] if rates else None,
        schedule_phase=_written_phase(state) or phase([rates[at] for at in sorted(rates)], last),
    )


_COUNTS = ("global_step", "num_input_tokens_seen", "max_steps", "total_flos")


def _count(name: str, value: Any) -> int:
    """A whole number, also where another tool wrote it as 200704.0 or "200704"; FLOPs are rounded.

    Raises TrajectoryFileError.
    """
    if name == "total_flos":
        return round(units.read_number(value, name=name, error=TrajectoryFileError))
    return units.read(value, name=name, error=TrajectoryFileError)


def _epochs(value: Any) -> float | None:
    """The Trainer's count of epochs; None for what is no count, since nothing but a remark rests on it."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf
    return float(value) if known else None


def _rate(entry: Any) -> tuple[float, float]:
    """(step, learning rate) of a log entry; the step is infinite in one that says no such thing."""
    try:
        at, rate = float(entry["step"]), float(entry["learning_rate"])
    except (KeyError, TypeError, ValueError):
        return math.inf, 0.0
    return (at, rate) if math.isfinite(rate) else (math.inf, 0.0)


def phase(rates: Sequence[float], last: bool = False) -> str:
    """The schedule's phase after these learning rates; "" where fewer than two are known.

    `last` says that the training ended here.
    """
    if len(rates) < 2:
        return ""
    before, now, peak = rates[-2], rates[-1], max(rates)
    if now > before:
        return "warmup"
    if now == peak:
        return "constant"
    return "annealed" if now <= ANNEALED_SHARE * peak or (last and now < before) else "decay"


def _written_phase(state: dict[str, Any]) -> str:
    written = state.get("schedule_phase", "")
    return written if written in PHASES else ""


SEEN, FLOS = "num_input_tokens_seen", "total_flos"
"""The two counters from which D is read."""


def _tokens(counts: dict[str, int], step: int, folder: Path) -> tuple[int | None, str, str]:
    """(D, the counter it comes from, a note); no D where nothing says it."""
    if counts[SEEN] > 0:
        return counts[SEEN], SEEN, f"{SEEN} of trainer_state.json"
    if step == 0:
        return 0, "", "before the first step"
    if counts[FLOS] > 0:
        try:
            n_hf = count_parameters(folder).hf_non_embedding
        except PtqEvalError:
            return None, "", ""
        return round(counts[FLOS] / (6 * n_hf)), FLOS, f"{FLOS} / (6 · N_hf), N_hf = {n_hf:,}"
    return None, "", ""


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


@dataclass(frozen=True)
class _Reading:
    """A counter's value at a step."""

    step: int
    tokens: int

    def rate(self, since: _Reading) -> float:
        """Tokens per step since an earlier reading."""
        return (self.tokens - since.tokens) / (self.step - since.step)


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
        if not FEWEST <= rate <= TOKENS_PER_STEP.most:
            message = f"{SEEN} says {checkpoint.tokens:,} at step {checkpoint.step:,}, or {rate:,.3g} per step: "
            found[index] = checkpoint.with_problem(
                COUNTER_UNIT, f"{message}it seems to count something other than tokens, so D is wrong too; {REMEDY}"
            )
            break
    return found


def _with_whole(counter: str, counted: Sequence[Checkpoint]) -> dict[str, Checkpoint]:
    """The checkpoints read off one counter, by location; only those that change."""
    readings = [_Reading(c.step or 0, c.tokens or 0) for c in counted]
    if any(later.step <= earlier.step for earlier, later in pairwise(readings)):
        return {}
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


@dataclass(frozen=True)
class _Doubt:
    """Tokens per step up to a reading and elsewhere, and the step of the restart that would explain the difference."""

    rate: float
    usual: float
    step: int


def _doubtful(readings: Sequence[_Reading], restarts: Collection[int]) -> dict[int, _Doubt]:
    """By index, the readings whose slow growth a possible restart would explain."""
    starts = [_Reading(0, 0), *readings]
    rates = {at: reading.rate(starts[at]) for at, reading in enumerate(readings) if at not in restarts}
    found = {}
    for at, rate in rates.items():
        usual, steady = _usual(rates, at)
        if usual <= rate or any(_same(rates[near], rate) for near in (at - 1, at + 1) if near in rates):
            continue  # a rate that stays means another batch size
        counted = readings[at].tokens / usual
        lost = readings[at].step - counted
        whole = abs(counted - round(counted)) < WHOLE
        large = lost >= LOST * readings[at].step if steady or whole else at > 0 and rate < FAR * usual
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


def _completed(checkpoint: Checkpoint, restart: _Reading, noticed: bool) -> Checkpoint:
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


def _same(rate: float, other: float) -> bool:
    return abs(rate - other) <= STEADY * abs(other)
