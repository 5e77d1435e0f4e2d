"""Whether a matrix has the numbers that weights have which were quantized to 8 bits or fewer.

A checkpoint that was quantized and then saved as floats looks like any other: no scales, no recipe.  Its numbers show
it.  Each group of a row shares a scale, so the group has at most 16 different values (4 bits or fewer), or its values
are multiples of one step (integers up to 8 bits), or their mantissas are few (8-bit floats).  Trained weights hardly
repeat a value or a mantissa even in bfloat16, which has 128 mantissas.  Groups are looked for along both axes, since
some layers are stored transposed.  Zeros are not counted: a pruned matrix repeats these alone.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import partial

import numpy as np

GROUP = 32
"""Entries of a group, the smallest in use; larger ones consist of such."""
_SAMPLES = 64
"""Groups looked at along each axis."""
_FIRST = 2
"""Groups that are looked at before the others, where each takes long."""
_ROUNDED = np.array([0.9987, 1.0, 1.0013])
"""What a number of 16 bits may have been before it was rounded, as a factor (bfloat16: within 0.2 %)."""
_SHARE = 0.9
"""The share of groups that must be so: one may hold outliers that were kept."""
_VALUES, _STEPS, _MANTISSAS = 16, 255, 12
"""Different values, steps from zero to the largest, and mantissas of a group, at most; E4M3 has 8 mantissas, and
float16 rounds the smallest numbers once more."""
_COUNTED = 20
"""Numbers in a group that are enough to tell steps by."""
_OFF_STEP = 0.02
"""Mean squared distance to a multiple of the step, in steps.  With the best of all steps, 97 % of groups on an 8-bit
grid in bfloat16 are nearer, and fewer than 1 % of groups of plain weights."""


class Grid(Enum):
    """What the numbers of each group have in common, the coarsest first."""

    FEW_VALUES = "few_values"
    STEPS = "steps"
    FEW_MANTISSAS = "few_mantissas"


def grid_of(bits: np.ndarray, columns: int, floats: Callable[[np.ndarray], np.ndarray]) -> Grid | None:
    """The grid that the first rows of a matrix are on along either axis; None for plain weights.

    `bits` are entries in order of storage as they are stored, in rows of `columns`; a last incomplete row is
    ignored.  `floats` gives their numbers.
    """
    rows = bits[: len(bits) // columns * columns].reshape(-1, columns)
    along = [floats(_groups(matrix)) for matrix in (rows, rows[: GROUP * _SAMPLES].T)]
    steps = partial(_on_steps, factors=_ROUNDED if bits.itemsize == 2 else np.ones(1))
    kinds = ((Grid.FEW_VALUES, _few_values), (Grid.STEPS, steps), (Grid.FEW_MANTISSAS, _few_mantissas))
    return next((kind for kind, test in kinds if any(map(test, along))), None)


def _groups(matrix: np.ndarray) -> np.ndarray:
    """Groups along the rows [groups, GROUP]."""
    whole = matrix.shape[1] // GROUP * GROUP
    groups = matrix[:_SAMPLES, :whole].reshape(-1, GROUP)
    return groups[:: max(1, len(groups) // _SAMPLES)]


def _few_values(groups: np.ndarray) -> bool:
    return _few(groups, groups != 0, _VALUES)


def _few_mantissas(groups: np.ndarray) -> bool:
    return _few(np.frexp(np.abs(groups))[0], groups != 0, _MANTISSAS)


def _few(values: np.ndarray, counted: np.ndarray, most: int) -> bool:
    """Whether nearly every group has at most `most` different values where `counted`, and fewer than half as many."""
    ordered = np.sort(np.where(counted, values, np.inf), axis=1)
    new = np.ones_like(counted)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    different, count = (new & np.isfinite(ordered)).sum(axis=1), counted.sum(axis=1)
    return _nearly_all((different <= most) & (2 * different <= count), count > 0)


def _on_steps(groups: np.ndarray, factors: np.ndarray) -> bool:
    """Whether the numbers of nearly every group are multiples of one step."""
    counted = (groups != 0).sum(axis=1) >= _COUNTED
    size = np.abs(groups[counted])
    if not len(size) or not _are_multiples(size[:_FIRST], factors).any():
        return False
    return float(_are_multiples(size, factors).mean()) >= _SHARE


def _are_multiples(size: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """For each group of numbers from 0 on, whether there is a step with at most `_STEPS` of them to the largest.

    The largest is a multiple itself, but for its own rounding (`factors`).
    """
    largest = size.max(axis=1)[:, None, None]
    steps = largest / np.arange(1, _STEPS + 1)[:, None] * factors
    smallest = np.where(size > 0, size, np.inf).min(axis=1)[:, None, None]
    multiples = size[:, None, None] / steps[..., None]
    off = ((multiples - np.rint(multiples)) ** 2).sum(axis=-1) / (size > 0).sum(axis=1)[:, None, None]
    return ((off < _OFF_STEP) & (steps < 1.25 * smallest)).any(axis=(1, 2))  # none that is rounded to zero


def _nearly_all(found: np.ndarray, counted: np.ndarray) -> bool:
    """Whether this holds for nearly every group that counts; one of zeros says nothing, unless there are no others."""
    return bool(found[counted].mean() >= _SHARE) if counted.any() else False
