"""The kernels compiled by numba: two passes over each row of a block, the second within the first-level cache.

The first pass finds the highest logit; the second takes exponentials, sums them and multiplies them with the other
model's, all in vector registers.  Numba has no vector exponential of its own, so exp is written out: 2ⁿ·2ᶠ with a
polynomial of degree 6 for 2ᶠ, |f| ≤ 1/2 (Taylor's, relative error below 2e-7).  The shift is a whole power of two, so
rescaling earlier sums is exact, and z·log₂e − shift is one fused multiply-add.

`WIDTH` columns are summed side by side, in an order fixed here and not by the compiler: a loss is the same to the last
bit whether or not variants are compared with it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

from ptq_eval.measure.kernels.sums import LOG_FLOOR, Sums
from quantizers.kernels.cpu import compiled

WIDTH = 64
_LOG2E = np.float32(math.log2(math.e))
_LN2 = math.log(2)
_TO_INTEGER = np.float32(1.5 * 2**23)
"""Added to a small float32, it leaves the nearest integer in the low bits."""
_LEAST = np.float32(-126)
"""Below this power of two float32 loses digits: taken as zero."""
_C1, _C2, _C3, _C4, _C5, _C6 = (np.float32(_LN2**k / math.factorial(k)) for k in range(1, 7))
_ONE, _ZERO, _LOWEST = np.float32(1), np.float32(0), np.float32(LOG_FLOOR)


def full_precision(z: Tensor, e: Tensor | None, targets: Tensor, first: int, sums: Sums) -> None:
    """As `plain.full_precision`."""
    own = _arrays(sums.highest, sums.shift, sums.total, sums.target, sums.scale)
    if e is None:
        _losses(z.numpy(), targets.numpy(), first, *own)
    else:
        _full_precision(z.numpy(), e.numpy(), targets.numpy(), first, *own, *_arrays(sums.cross, sums.top))


def variant(q: Tensor, e: Tensor, targets: Tensor, first: int, full: Sums, sums: Sums) -> None:
    """As `plain.variant`."""
    own = _arrays(sums.highest, sums.shift, sums.total, sums.target, sums.scale)
    others = _arrays(sums.cross, sums.top, full.scale, full.top)
    _variants(q.numpy(), e.numpy(), targets.numpy(), first, *own, *others)


def _arrays(*tensors: Tensor) -> list[Any]:
    return [tensor.numpy() for tensor in tensors]


@intrinsic
def _times_power(typing_context, value, integer):  # pragma: no cover
    """`value`·2ⁿ, with n in the low bits of `integer`: n is added to the exponent."""

    def generate(context, builder, signature, arguments):
        whole = ir.IntType(32)
        bits, n = (builder.bitcast(argument, whole) for argument in arguments)
        return builder.bitcast(builder.add(bits, builder.shl(n, ir.Constant(whole, 23))), ir.FloatType())

    return types.float32(types.float32, types.float32), generate


@njit(fastmath={"contract"})
def _power(t):  # pragma: no cover
    """2ᵗ for t ≤ 1/2."""
    integer = t + _TO_INTEGER
    f = t - (integer - _TO_INTEGER)
    p = _ONE + f * (_C1 + f * (_C2 + f * (_C3 + f * (_C4 + f * (_C5 + f * _C6)))))
    result = _times_power(p, integer)  # type: ignore[call-arg]
    return _ZERO if t < _LEAST else result


@njit
def _read(logit):  # pragma: no cover
    """A logit, or the lowest that counts; NaN stays."""
    return _LOWEST if logit < _LOWEST else logit


@njit
def _highest(row, width):  # pragma: no cover
    """The highest of `row`; `width` is a work array of WIDTH numbers."""
    columns = len(row)
    width[:] = -np.inf
    whole = columns - columns % WIDTH
    for start in range(0, whole, WIDTH):
        for t in range(WIDTH):
            v = row[start + t]
            width[t] = v if v > width[t] else width[t]
    for j in range(whole, columns):
        width[j - whole] = row[j] if row[j] > width[j - whole] else width[j - whole]
    half = WIDTH // 2
    while half:
        for t in range(half):
            width[t] = width[t + half] if width[t + half] > width[t] else width[t]
        half //= 2
    return width[0]


@njit(fastmath={"contract"})
def _sum(row, shift, width):  # pragma: no cover
    columns = len(row)
    width[:] = 0
    whole = columns - columns % WIDTH
    for start in range(0, whole, WIDTH):
        for t in range(WIDTH):
            width[t] += _power(_read(row[start + t]) * _LOG2E - shift)
    for j in range(whole, columns):
        width[j - whole] += _power(_read(row[j]) * _LOG2E - shift)
    return _total(width)


@njit(fastmath={"contract"})
def _sum_and_keep(row, shift, e, width, products):  # pragma: no cover
    columns = len(row)
    width[:] = 0
    products[:] = 0
    whole = columns - columns % WIDTH
    for start in range(0, whole, WIDTH):
        for t in range(WIDTH):
            v = _read(row[start + t])
            power = _power(v * _LOG2E - shift)
            e[start + t] = power
            width[t] += power
            products[t] += power * v
    for j in range(whole, columns):
        v = _read(row[j])
        power = _power(v * _LOG2E - shift)
        e[j] = power
        width[j - whole] += power
        products[j - whole] += power * v
    return _total(width), _total(products)


@njit(fastmath={"contract"})
def _sum_and_cross(row, shift, e, width, products):  # pragma: no cover
    columns = len(row)
    width[:] = 0
    products[:] = 0
    whole = columns - columns % WIDTH
    for start in range(0, whole, WIDTH):
        for t in range(WIDTH):
            v = _read(row[start + t])
            width[t] += _power(v * _LOG2E - shift)
            products[t] += e[start + t] * v
    for j in range(whole, columns):
        v = _read(row[j])
        width[j - whole] += _power(v * _LOG2E - shift)
        products[j - whole] += e[j] * v
    return _total(width), _total(products)


@njit
def _total(width):  # pragma: no cover
    half = WIDTH // 2
    while half:
        for t in range(half):
            width[t] += width[t + half]
        half //= 2
    return width[0]


@njit
def _raised(found, i, highest, shift, scale):  # pragma: no cover
    """Raise row i's shift to a `found` highest logit; the shift in powers of two."""
    scale[i] = 1.0
    found = _read(found)
    if found > highest[i]:
        highest[i] = found
        new = np.rint(found * _LOG2E) * _LN2
        scale[i] = math.exp(shift[i] - new)
        shift[i] = new
    return np.float32(np.rint(highest[i] * _LOG2E))


@njit
def _take(row, index, first, i, out):  # pragma: no cover
    if first <= index < first + len(row):
        out[i] = _read(row[index - first])


@compiled
def _losses(z, targets, first, highest, shift, total, target, scale):  # pragma: no cover
    width = np.empty(WIDTH, np.float32)
    for i in range(len(z)):
        power = _raised(_highest(z[i], width), i, highest, shift, scale)
        total[i] = total[i] * scale[i] + _sum(z[i], power, width)
        _take(z[i], targets[i], first, i, target)


@compiled
def _full_precision(z, e, targets, first, highest, shift, total, target, scale, cross, top):  # pragma: no cover
    width, products = np.empty(WIDTH, np.float32), np.empty(WIDTH, np.float32)
    for i in range(len(z)):
        found = _highest(z[i], width)
        if found > highest[i]:
            j = 0
            while z[i, j] != found:
                j += 1
            top[i] = first + j
        power = _raised(found, i, highest, shift, scale)
        block, product = _sum_and_keep(z[i], power, e[i], width, products)
        total[i] = total[i] * scale[i] + block
        cross[i] = cross[i] * scale[i] + product
        _take(z[i], targets[i], first, i, target)


@compiled
def _variants(
    q, e, targets, first, highest, shift, total, target, scale, cross, at_top, rescaled, top
):  # pragma: no cover
    width, products = np.empty(WIDTH, np.float32), np.empty(WIDTH, np.float32)
    for i in range(len(q)):
        power = _raised(_highest(q[i], width), i, highest, shift, scale)
        block, product = _sum_and_cross(q[i], power, e[i], width, products)
        total[i] = total[i] * scale[i] + block
        cross[i] = cross[i] * rescaled[i] + product
        _take(q[i], targets[i], first, i, target)
        _take(q[i], np.int64(top[i]), first, i, at_top)
