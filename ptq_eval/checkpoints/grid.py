"""Whether a matrix has the few values per group that weights have which were quantized to 4 bits or fewer.

A checkpoint that was quantized and then saved as floats looks like any other: no scales, no recipe.  Its numbers show
it: each group of a row shares a scale, so that no more than 16 different values are in it, where trained weights hardly
repeat one even in bfloat16.  Groups are looked for along both axes, since some layers are stored transposed.
Zeros are not counted: a pruned matrix repeats these alone.  8-bit weights are not found: a group of them repeats few.
"""

from __future__ import annotations

import numpy as np

GROUP = 32
"""Entries of a group, the smallest in use; larger ones consist of such."""
LEVELS = 16
_SAMPLES = 64
"""Groups looked at along each axis."""
_SHARE = 0.9
"""The share of groups that must be so: one may hold outliers that were kept."""


def on_grid(bits: np.ndarray, columns: int) -> bool:
    """Whether the first rows of a matrix, as the bits of its numbers, have few values per group along either axis.

    `bits` are entries in order of storage, unsigned, of rows of `columns`; those of a last incomplete row are ignored.
    """
    rows = bits[: len(bits) // columns * columns].reshape(-1, columns)
    return any(_few(matrix) for matrix in (rows, rows[: GROUP * _SAMPLES].T))


def _few(matrix: np.ndarray) -> bool:
    whole = matrix.shape[1] // GROUP * GROUP
    groups = matrix[:_SAMPLES, :whole].reshape(-1, GROUP)
    if not len(groups):
        return False
    groups = np.sort(groups[:: max(1, len(groups) // _SAMPLES)], axis=1)
    sign = groups.dtype.type(1 << (8 * groups.itemsize - 1))
    zero = (groups & ~sign) == 0
    repeated = np.zeros_like(zero)
    repeated[:, 1:] = groups[:, 1:] == groups[:, :-1]
    counted = GROUP - zero.sum(axis=1)
    different = (~zero & ~repeated).sum(axis=1)
    few = (different < LEVELS) & (2 * different <= counted)
    # A group of zeros says nothing, unless there are no others.
    return bool(few[counted > 0].mean() >= _SHARE) if (counted > 0).any() else False
