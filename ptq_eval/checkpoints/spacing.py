"""A few checkpoints of a long run, spaced evenly in log D.

The degradation laws are powers of D, so checkpoints at equal distances in log D say the most about them for their
number.  Of the checkpoints that there are, those are taken whose summed squared distance from evenly spaced places is
least: a question of one dimension, answered exactly by dynamic programming, so the choice is the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ptq_eval.records import Checkpoint


def spread(checkpoints: Sequence[Checkpoint], count: int) -> list[Checkpoint]:
    """`count` of a run's checkpoints in their order, or all if there are no more.

    D = 0 has no logarithm, and an unknown D no place: such checkpoints are not taken.  Where D of too few is known,
    the step takes its place if all steps are of one stage of training, and otherwise the place in the run.
    """
    if count >= len(checkpoints):
        return list(checkpoints)
    placed = [c for c in checkpoints if c.tokens]
    values = [math.log(c.tokens or 1) for c in placed]
    if len(placed) < count:
        placed = [c for c in checkpoints if c.step]
        values = [math.log(c.step or 1) for c in placed]
        if len(placed) < count or len({c.stage for c in placed}) > 1:
            placed, values = list(checkpoints), [float(place) for place in range(len(checkpoints))]
    order = sorted(range(len(placed)), key=lambda place: values[place])
    kept = {order[place] for place in evenly([values[place] for place in order], count)}
    return [checkpoint for place, checkpoint in enumerate(placed) if place in kept]


def evenly(values: Sequence[float], count: int) -> list[int]:
    """The places of `count` of the ascending `values`, at least two, nearest to evenly spaced ones.

    The first and the last are among them; of equally good choices, the earlier places.
    """
    first, last = values[0], values[-1]
    targets = [first + (last - first) * k / (count - 1) for k in range(count)]
    n = len(values)
    cost = [0.0 if place == 0 else math.inf for place in range(n)]
    chosen: list[list[int]] = [[0] * n]
    for k in range(1, count):
        best, at, found, before = math.inf, 0, [math.inf] * n, [0] * n
        for place in range(1, n):
            if cost[place - 1] < best:
                best, at = cost[place - 1], place - 1
            found[place], before[place] = best + (values[place] - targets[k]) ** 2, at
        cost = found
        chosen.append(before)
    places = [n - 1]
    for before in reversed(chosen[1:]):
        places.append(before[places[-1]])
    return places[::-1]
