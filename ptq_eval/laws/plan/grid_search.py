"""The least value of a function of two variables, for many replicates at once and without derivatives.

For each y the least value over x is found on a grid that is refined around its lowest point; the least of these over y
is found in the same way.  The axes are nested because the losses of a plan are flat in one of them: on a joint grid
whose x has not converged, differences between two y would be those between two x, and the refinement would go to the
wrong place.  The ends of y are separate candidates, since the function may jump there.

This takes about ten thousand evaluations per replicate, all of them in arrays, and needs no starting point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

COARSE, FINE = 39, 13
"""Points of an axis, at first and around the lowest point: each further round is six times as fine.  With fewer points
there are more rounds, whose calls take longer than the evaluations where replicates are few."""
ROUGH, ROUNDS = 5, 6
"""Further rounds over x while y is coarse, and over either axis to the end."""
MARGIN = 0.1
"""How far x is searched beyond its values at the neighbouring y."""
_END = 1e-9
"""Share of the axis y that is excluded at its ends, where the function may jump."""

Objective = Callable[[np.ndarray, np.ndarray], np.ndarray]
Ends = tuple[float, float]


def lowest(
    objective: Objective, box: Sequence[Ends]
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, list[int | None]]:
    """The least value of `objective` on a rectangle, for every replicate.

    objective(x, y) takes [r, n, m] and [r, 1, m], r being 1 or the number of replicates; it returns [replicates, n, m].
    It has one minimum in x for each y.  Returns the coordinates and the values, each [replicates], and for each axis
    the end (0 or 1) that the first replicate touches, or None.  An axis whose ends coincide is fixed.
    """
    (left, right), (bottom, top) = box
    ends = np.array([[bottom, top]] if bottom < top else [[bottom]], float)
    x, value = _along(objective, ends, np.array([[left]]), np.array([[right]]), COARSE, ROUNDS + 2)
    y = np.broadcast_to(ends, x.shape)
    if bottom < top:
        inner = _between(objective, (left, right), (bottom, top))
        x, y, value = (np.concatenate(pair, axis=1) for pair in zip((x, y, value), inner))
    best = value.argmin(axis=1)[:, None]
    at = [np.take_along_axis(array, best, axis=1)[:, 0] for array in (x, y, value)]
    touched = [_end(one[0], *pair) for one, pair in zip(at, box)]
    return (at[0], at[1]), at[2], touched


def _between(objective: Objective, first: Ends, second: Ends) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y and the value, each [replicates, 1], of the lowest point between the ends of y."""
    inset = _END * (second[1] - second[0])
    y = _points(np.array([[second[0] + inset]]), np.array([[second[1] - inset]]), COARSE)[..., 0]
    x, value = _along(objective, y, np.array([[first[0]]]), np.array([[first[1]]]), COARSE, ROUGH)
    for _ in range(ROUNDS):
        k = np.clip(value.argmin(axis=1), 1, value.shape[1] - 2)[:, None] + np.array([[-1, 0, 1]])
        near = np.take_along_axis(x, k, axis=1)
        around = np.take_along_axis(np.broadcast_to(y, x.shape), k, axis=1)
        y = _points(around[:, [0]], around[:, [2]], FINE)[..., 0]
        low = np.maximum(near.min(axis=1, keepdims=True) - MARGIN, first[0])
        high = np.minimum(near.max(axis=1, keepdims=True) + MARGIN, first[1])
        x, value = _along(objective, y, low, high, FINE, ROUNDS)
    best = value.argmin(axis=1)[:, None]
    at = [np.take_along_axis(array, best, axis=1) for array in (x, y, value)]
    return at[0], at[1], at[2]


def _along(
    objective: Objective, y: np.ndarray, low: np.ndarray, high: np.ndarray, count: int, rounds: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each y [r, m] the x of least value between `low` and `high` [r, 1], and that value, both [replicates, m]."""
    fixed = bool(np.all(low == high))
    for _ in range(1 if fixed else rounds + 1):
        x = _points(low, high, 1 if fixed else count)
        values = objective(x, y[:, None, :])
        k, x = values.argmin(axis=1)[:, None], np.broadcast_to(x, values.shape)
        low, at, high = (
            np.take_along_axis(x, np.clip(k + step, 0, x.shape[1] - 1), axis=1)[:, 0] for step in (-1, 0, 1)
        )
        value = np.take_along_axis(values, k, axis=1)[:, 0]
        count = FINE
    return at, value  # pyrefly: ignore[unbound-name]  # there is at least one round


def _points(low: np.ndarray, high: np.ndarray, count: int) -> np.ndarray:
    """[r, count, m] from `low` to `high` [r, m], both included exactly."""
    steps = np.linspace(0, 1, count)[None, :, None]
    return low[:, None] * (1 - steps) + high[:, None] * steps


def _end(value: float, low: float, high: float) -> int | None:
    """The end of an axis that a value touches: 0 or 1, None for neither and for a fixed axis."""
    near = 1e-6 * (high - low)
    return None if low == high else 0 if value - low <= near else 1 if high - value <= near else None
