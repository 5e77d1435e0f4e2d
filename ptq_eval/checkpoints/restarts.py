"""Which histories of a training explain the counts of tokens in its checkpoints.

A history says of each interval between two checkpoints how large the batch was and whether the counter started again.
There are four ways to read an interval at whose end the counter is v, at step s, after v' at step s':

* the counter went on, and the batch was (v - v') / (s - s'), unless v does not exceed v';
* training was resumed from the checkpoint, and the batch was v / (s - s');
* it was resumed from one in between that is not there any more, with the batch of before;
* before the first checkpoint: it was resumed from one that is not there, with the batch of after.

An event is a restart, a new size of the batch, or both at once; a batch that goes on growing from one interval to the
next follows a schedule, which is one event.  A free number is a new size of the batch, a schedule, or the step of a
restart where no checkpoint is.  The histories that count are those of the fewest events, and those of the fewest free
numbers: a job for each checkpoint restarts the counter often, but one batch explains all counts.  No history is
preferred otherwise, so D is known only as long as they agree.

A restart with a larger batch could explain any growth.  Where growth never becomes slower, it counts only if the batch
is one of before or after, or, in the last interval, 2, 4, 8 ... times the former one while the growth is no such
multiple.  A restart before the first checkpoint was at a whole step; where the batch is exact, that tells it from a
batch that was increased in small parts.

Nothing shows a restart that leaves the counter where it would have been, such as one with twice the batch after half
of the steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import attrgetter

STEADY = 0.01
"""Two rates of tokens per step that differ by less than this share are the same."""
ON_LINE = 0.05
"""Growth that differs by less than this share is that of one line: no change of the batch, and no restart."""


@dataclass(frozen=True)
class Reading:
    """A count of tokens at a step."""

    step: int
    tokens: int

    def rate(self, since: Reading) -> float:
        """Tokens per step since an earlier reading."""
        return (self.tokens - since.tokens) / (self.step - since.step)


START = Reading(0, 0)


def same(rate: float, other: float, share: float = STEADY) -> bool:
    """Whether two rates differ by at most a share of the second."""
    return abs(rate - other) <= share * abs(other)


@dataclass(frozen=True)
class Interval:
    """What happened between two readings: the tokens seen, the batch at the end (in tokens), and the step at which the
    counter started again (None: it did not); `grew` says that the batch did."""

    tokens: int
    batch: float
    restart: int | None = None
    grew: bool = False


@dataclass(frozen=True)
class _Cost:
    """Of a history up to a reading: its events, and its free numbers (sizes of the batch, places of restarts)."""

    events: int = 0
    numbers: int = 0


_EVENTS, _NUMBERS = attrgetter("events"), attrgetter("numbers")
"""The two costs by which histories are ranked."""


def histories(readings: Sequence[Reading]) -> list[set[Interval]]:
    """For each reading, in order of step, the intervals that end there in any of the histories that count."""
    found: list[set[Interval]] = [set() for _ in readings]
    for rank in (_EVENTS, _NUMBERS):
        for place, intervals in enumerate(_best(readings, rank)[0]):
            found[place] |= {replace(interval, batch=0.0, grew=False) for interval in intervals}
    return found


def one_batch(readings: Sequence[Reading]) -> bool:
    """Whether restarts at checkpoints, and one change of the batch at most, explain all readings."""
    return _best(readings, _NUMBERS)[1].numbers <= 1


def _best(readings: Sequence[Reading], rank: Callable[[_Cost], int]) -> tuple[list[set[Interval]], _Cost]:
    """The intervals of the histories that come first by `rank`, and the cost of one of them: a shortest path."""
    rates = [reading.rate(earlier) for earlier, reading in pairwise([START, *readings])]
    slower = any(rate < (1 - ON_LINE) * past for past, rate in pairwise(rates))
    layers: list[dict[Interval, tuple[_Cost, set[Interval]]]] = []
    for place in range(len(readings)):
        layer: dict[Interval, tuple[_Cost, set[Interval]]] = {}
        for past, (before, _) in layers[-1].items() if layers else [(None, (_Cost(), set()))]:
            for interval, events, numbers in _ways(readings, place, past, slower):
                cost = _Cost(before.events + events, before.numbers + numbers)
                known = layer.get(interval)
                if known is None or rank(cost) < rank(known[0]):
                    layer[interval] = cost, {past} if past else set()
                elif past and rank(cost) == rank(known[0]):
                    known[1].add(past)
        layers.append(layer)
    if not layers:
        return [], _Cost()
    least = min((cost for cost, _ in layers[-1].values()), key=rank)
    best = [{interval for interval, (cost, _) in layers[-1].items() if rank(cost) == rank(least)}]
    for layer in reversed(layers[1:]):
        best.insert(0, {past for interval in best[0] for past in layer[interval][1]})
    return best, least


def _ways(
    readings: Sequence[Reading], place: int, past: Interval | None, slower: bool
) -> Iterator[tuple[Interval, int, int]]:
    """The ways to read the interval before a reading, each with the events and free numbers that it takes."""
    reading, earlier = readings[place], readings[place - 1] if place else START
    after = max(readings[place + 1].rate(reading), 0.0) if place + 1 < len(readings) else 0.0
    growth, steps = reading.rate(earlier), reading.step - earlier.step
    if past is None:
        yield Interval(reading.tokens, growth), 0, 0
        late = reading.tokens < (1 - ON_LINE) * after * reading.step
        if late and (not after.is_integer() or reading.tokens % after == 0):
            yield Interval(round(after * steps), after, round(reading.step - reading.tokens / after)), 1, 1
        return
    if growth > 0:
        changed = not same(growth, past.batch, ON_LINE)
        grew = changed and growth > past.batch
        event = changed and not (grew and past.grew)
        yield Interval(reading.tokens - earlier.tokens, growth, None, grew), event, event
    resumed = reading.tokens / steps
    if slower or _larger_batch(growth, resumed, past.batch, after):
        yield Interval(reading.tokens, resumed, earlier.step), 1, not same(resumed, past.batch)
    if resumed < (1 - STEADY) * past.batch and growth < (1 - ON_LINE) * past.batch:
        step = round(reading.step - reading.tokens / past.batch)
        yield Interval(round(past.batch * steps), past.batch, step), 1, 1


def _larger_batch(growth: float, resumed: float, batch: float, after: float) -> bool:
    """Whether a restart at a checkpoint counts, where the batch was `batch` before and would be `resumed`."""
    stays = same(resumed, batch) or same(resumed, after)
    doubled = after == 0 and _power_of_two(resumed / batch) and not _power_of_two(growth / batch)
    return stays or doubled


def _power_of_two(ratio: float) -> bool:
    return ratio > 0 and same(ratio, 2.0 ** round(math.log2(ratio)))
