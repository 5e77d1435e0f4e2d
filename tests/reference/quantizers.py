"""Slow, independent implementations in numpy, written from the papers, for the oracle tests.

They share no code and no algebra with the package: GPTQ here updates the inverse Hessian by Gaussian
elimination after every single column (equations 2 and 3 of arXiv 2210.17323, in float64), without Cholesky
factor and without lazy batches; AWQ searches on stored activations; grids are computed one group at a time.

Scales and quotients are float32 here too.  On the symmetric grid the most negative weight of a group lies
exactly half-way between two codes, so that the last bit of w/scale decides; in another precision the oracle
would decide such ties by a coin of its own.
"""

import numpy as np
import torch


def group_params(weights, bits, symmetric):
    """Scale and zero of one group, `weights` [rows, size], in the precision of `weights`."""
    top_code = weights.dtype.type(2**bits - 1)
    scales, zeros = [], []
    for row in weights:
        low, high = min(row.min(), 0), max(row.max(), 0)
        if symmetric:
            high = max(-low, high)
            low = -high
        if low == high == 0:
            low, high = -1, 1
        scale = row.dtype.type(high - low) / top_code
        scales.append(scale)
        zeros.append(row.dtype.type(2 ** (bits - 1)) if symmetric else np.rint(-low / scale))
    return np.array(scales), np.array(zeros)


def rtn(weight, bits, group_size, symmetric):
    """Codes [out, in] and the weight they stand for, in the precision of `weight`."""
    columns = weight.shape[1]
    codes, restored = np.zeros_like(weight), np.zeros_like(weight)
    for start in range(0, columns, group_size or columns):
        part = slice(start, start + (group_size or columns))
        scale, zero = group_params(weight[:, part], bits, symmetric)
        rounded = np.rint(weight[:, part] / scale[:, None]) + zero[:, None]
        codes[:, part] = np.clip(rounded, 0, 2**bits - 1)
        restored[:, part] = (codes[:, part] - zero[:, None]) * scale[:, None]
    return codes.astype(np.uint8), restored


def gptq(
    weight,
    hessian,
    bits,
    group_size,
    symmetric,
    *,
    act_order=False,
    static_groups=False,
    block_size=128,
    group_scale_from="block_start",
    dead="zero",
    damping=0.01,
):
    """Codes [out, in] in the original order of columns."""
    weight, hessian = weight.astype(np.float64), hessian.astype(np.float64)
    columns = weight.shape[1]
    size = group_size or columns
    unused = np.diag(hessian) == 0
    damp = damping * np.diag(hessian)[~unused].mean()
    hessian[unused, unused] = 1
    if dead == "zero":
        weight[:, unused] = 0

    original = weight.copy()
    order = np.argsort(-np.diag(hessian), kind="stable") if act_order else np.arange(columns)
    weight = weight[:, order]
    inverse = np.linalg.inv(hessian[np.ix_(order, order)] + damp * np.eye(columns))
    codes = np.zeros(weight.shape)
    for j in range(columns):
        if j % block_size == 0:
            at_block_start = weight.copy()
        if static_groups:
            first = order[j] // size * size
            scale, zero = group_params(np.float32(original[:, first : first + size]), bits, symmetric)
        elif j % size == 0:
            source = at_block_start if group_scale_from == "block_start" else weight
            scale, zero = group_params(np.float32(source[:, j : j + size]), bits, symmetric)
        code = np.clip(np.rint(np.float32(weight[:, j]) / scale) + zero, 0, 2**bits - 1)
        codes[:, order[j]] = code
        error = weight[:, j] - (code - zero) * scale
        weight[:, j:] -= np.outer(error / inverse[j, j], inverse[j, j:])
        inverse -= np.outer(inverse[:, j], inverse[j, :]) / inverse[j, j]
    return codes.astype(np.uint8)


def awq(weights, inputs, bits, group_size, symmetric, loudness=None):
    """Exponent and scales [in] with the least error of the layers' outputs on `inputs` [tokens, in].

    `loudness` is mean |x| of every channel in float32; given, it and the scales made from it have the bits of
    the package's, so that ties of the symmetric grid fall the same way; without it, everything is float64.
    """
    inputs = inputs.astype(np.float64)
    means = torch.tensor(np.abs(inputs).mean(0) if loudness is None else loudness)
    best = (np.inf, None, None)
    for step in range(20):
        scales = torch.clamp(means ** (step / 20), min=1e-4)
        scales = (scales / torch.sqrt(scales.max() * scales.min())).numpy()
        error = 0.0
        for weight in weights:
            restored = rtn(weight * scales, bits, group_size, symmetric)[1] / scales
            error += ((inputs @ (restored - weight).astype(np.float64).T) ** 2).sum()
        if error < best[0]:
            best = (error, step / 20, scales)
    return best[1], best[2]


def awq_clip(weight, inputs, scales, bits, group_size, symmetric):
    """The weight [out, in] after the clip search on stored activations, scales divided out again."""
    scaled, inputs = weight * scales, inputs.astype(np.float64) / scales
    restored = np.zeros_like(scaled)
    for start in range(0, weight.shape[1], group_size):
        part = slice(start, start + group_size)
        for row in range(len(weight)):
            group, least = scaled[row : row + 1, part], np.inf
            for step in range(10):
                limit = np.abs(group).max() * (1 - step / 20)
                candidate = rtn(np.clip(group, -limit, limit), bits, None, symmetric)[1]
                error = ((inputs[:, part] @ (candidate - group)[0]) ** 2).sum()
                if error < least:
                    least, restored[row, part] = error, candidate[0]
    return restored / scales
