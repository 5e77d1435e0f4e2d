"""Round to nearest in numpy, one group of one row at a time, written from the definition of the grid.

All arithmetic is in the precision of the weights.  On the symmetric grid the most negative weight of a group is exactly
halfway between two codes, so the last bit of w/scale decides: only in the package's precision are such ties the same.
"""

import numpy as np


def group_grid(group, bits, symmetric=False):
    """Scale and zero, each [rows], of one group of columns [rows, size]."""
    number = group.dtype.type
    scales, zeros = [], []
    for row in group:
        low, high = min(row.min(), 0), max(row.max(), 0)
        if symmetric:
            high = max(-low, high)
            low = -high
        if low == high == 0:
            low, high = -1, 1
        scales.append(number(high - low) / number(2**bits - 1))
        zeros.append(number(2 ** (bits - 1)) if symmetric else np.rint(-low / scales[-1]))
    return np.array(scales), np.array(zeros)


def nearest(values, scale, zero, bits):
    """The nearest codes of `values` [rows, …], whose rows have grids of their own, and what the codes represent."""
    codes = np.clip(np.rint(values.T / scale) + zero, 0, 2**bits - 1)
    return codes.T, ((codes - zero) * scale).T


def rtn(weight, bits, group_size=None, symmetric=False):
    """Codes [out, in] and the weight that they represent, rounded in groups of columns."""
    codes, restored = np.empty(weight.shape, np.uint8), np.empty_like(weight)
    size = group_size or weight.shape[1]
    for start in range(0, weight.shape[1], size):
        part = slice(start, start + size)
        grid = group_grid(weight[:, part], bits, symmetric)
        codes[:, part], restored[:, part] = nearest(weight[:, part], *grid, bits)
    return codes, restored
