"""The one definition of rounding: scales of a group, nearest codes, and what codes represent, for every number format.

`params_of`, `codes_of` and `weights_of` take a Scheme and serve every format; those of the table in `formats.py` are
defined there.  The rest of this file is the integer grid, format "int".

A group of weights w gets codes c = clamp(round(w/scale) + zero, 0, 2^b − 1), which represent scale·(c − zero).  Every
method here uses the definition of the GPTQ authors' code (Frantar et al. 2022), so methods differ in their codes and
scales but never in the meaning of "b bits":

- asymmetric: the range [min w, max w] is widened to contain 0, scale = (max − min)/(2^b − 1) and
  zero = round(−min/scale), an integer code, so that a zero weight stays exactly zero;
- symmetric: scale = 2·max|w|/(2^b − 1) and zero = 2^(b−1).  All 2^b codes are used; the lowest represents
  half a step below −max|w| and the highest half a step below max|w|;
- a group of zeros gets the range [−1, 1], and codes that represent exact zeros.

Three other public definitions of "symmetric" are formats by name.  `int4_narrow` has scale = max|w|/(2^(b−1) − 1),
codes from −(2^(b−1) − 1) to 2^(b−1) − 1, one code unused: at 2 bits it has three values instead of four and about
twice the squared error.  `int4_full` and `int4_signed` use max|w|/2^(b−1).  Numbers from different grids are not
comparable.

One difference from the authors' code: in a group without a negative weight they leave the symmetric range at
[0, max w] under the same fixed zero point, so that everything above half the largest weight is clipped.  With
128 weights in a group this never happens, in a ragged rest of four it happens in every sixteenth; here the
symmetric range is always symmetric.

Groups run along the last dimension.  A ragged last group is padded with zeros, which changes neither a
range that contains 0 nor any error, because a zero is rounded exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from quantizers.formats import CLIP_GRID, CLIP_NORM, CLIP_STEPS, FORMATS
from quantizers.scales import Params
from quantizers.scheme import Scheme


def outer_of(weight: Tensor, scheme: Scheme, sizes: Sequence[int] | None = None) -> Tensor | None:
    """The scale of a whole layer `weight` [rows, columns] as [rows, 1, 1], None where the format has none.

    With `sizes`, `weight` is several layers of sizes[i] rows, each with a scale of its own.
    """
    if scheme.format == "int" or not FORMATS[scheme.format].tensor_top:
        return None
    return torch.cat([FORMATS[scheme.format].outer(layer) for layer in weight.split(list(sizes or [len(weight)]))])


def params_of(groups: Tensor, scheme: Scheme, outer: Tensor | None = None, mse: bool = False) -> Params:
    """Scale and zero of every group, each [rows, groups], for `groups` [rows, groups, size] in float32.

    `outer` comes from `outer_of`.  With `mse`, the range is shrunk to where the sum of |Δw|^2.4 is least.
    Raises QuantizationError if a scale is too large for the format.
    """
    if scheme.format == "int":
        return Params(*find_params(groups, scheme.bits, scheme.symmetric, mse))
    return FORMATS[scheme.format].params(groups, outer, mse)


def codes_of(groups: Tensor, params: Params, scheme: Scheme) -> Tensor:
    """The nearest codes, uint8, for `groups` [rows, groups, size]."""
    if scheme.format == "int":
        return encode(groups, params.scale, params.zero, scheme.bits).to(torch.uint8)
    return FORMATS[scheme.format].codes(groups, params)


def rounded(groups: Tensor, params: Params, scheme: Scheme) -> Tensor:
    """What the nearest codes represent, `weights_of` of `codes_of`, without the codes in between."""
    if scheme.format == "int":
        return decode(encode(groups, params.scale, params.zero, scheme.bits), params.scale, params.zero)
    return FORMATS[scheme.format].rounded(groups, params)


def weights_of(codes: Tensor, params: Params, scheme: Scheme) -> Tensor:
    """The weights in float32 that `codes` [rows, groups, size] represent."""
    if scheme.format == "int":
        return decode(codes.float(), params.scale, params.zero)
    return FORMATS[scheme.format].weights(codes, params)


def to_groups(weight: Tensor, size: int) -> Tensor:
    """`weight` [rows, columns] as groups [rows, groups, size], a ragged last one padded with zeros."""
    rows, columns = weight.shape
    return functional.pad(weight, (0, -columns % size)).reshape(rows, -1, size)


def from_groups(groups: Tensor, columns: int) -> Tensor:
    """The inverse of `to_groups`: [rows, groups, size] as [rows, columns], without the padding."""
    return groups.flatten(1)[:, :columns]


def find_params(groups: Tensor, bits: int | Tensor, symmetric: bool, mse: bool = False) -> tuple[Tensor, Tensor]:
    """Scale and zero point of every group, each [...], for `groups` [..., size] in float32.

    `bits` is a number, or an integer tensor that broadcasts against [...].  With `mse`, the range is shrunk in
    steps to where the sum of |Δw|^2.4 is least.
    """
    low, high = _range(groups.amin(-1), groups.amax(-1), bits, symmetric)
    return _clipped(groups, low, high, bits, symmetric) if mse else _params(low, high, bits, symmetric)


def params_of_range(low: Tensor, high: Tensor, bits: int | Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    """As `find_params`, from the smallest and the largest weight of every group, each [...]."""
    return _params(*_range(low, high, bits, symmetric), bits, symmetric)


def encode(groups: Tensor, scale: Tensor, zero: Tensor, bits: int | Tensor) -> Tensor:
    """The nearest codes, whole numbers of the type and shape of `groups` [..., size]; `bits` as in `find_params`."""
    codes = (groups / scale.unsqueeze(-1)).round_().add_(zero.unsqueeze(-1))
    if isinstance(bits, int):
        return codes.clamp_(0, 2**bits - 1)
    return codes.clamp_(min=0).clamp_(max=(2**bits - 1).unsqueeze(-1))


def decode(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The weights that `codes` [..., size] represent."""
    return (codes - zero.unsqueeze(-1)) * scale.unsqueeze(-1)


def _range(low: Tensor, high: Tensor, bits: int | Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    low, high = low.clamp(max=0), high.clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    empty = (high - low) / (2**bits - 1) == 0  # zeros only, or so small that the scale underflows
    return torch.where(empty, -1.0, low), torch.where(empty, 1.0, high)


def _params(low: Tensor, high: Tensor, bits: int | Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    scale = (high - low) / (2**bits - 1)
    zero = torch.zeros_like(scale) + 2 ** (bits - 1) if symmetric else (-low / scale).round_()
    return scale, zero


def _clipped(groups: Tensor, low: Tensor, high: Tensor, bits: int | Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    best_scale, best_zero = _params(low, high, bits, symmetric)
    best = torch.full_like(low, torch.inf)
    for step in range(CLIP_STEPS):
        shrink = 1 - step / CLIP_GRID
        scale, zero = _params(shrink * low, shrink * high, bits, symmetric)
        delta = decode(encode(groups, scale, zero, bits), scale, zero).sub_(groups)
        error = delta.abs_().pow_(CLIP_NORM).sum(-1)
        better = error < best
        best = torch.where(better, error, best)
        best_scale = torch.where(better, scale, best_scale)
        best_zero = torch.where(better, zero, best_zero)
    return best_scale, best_zero
