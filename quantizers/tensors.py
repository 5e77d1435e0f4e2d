"""Rounding of tensors that exist only while a model runs: inputs of layers, keys and values.

A tensor x is [windows, …, tokens, channels], between them the heads of keys and values.  What shares a scale is

    "token"     the channels of one token (of one head), in the blocks of a format that has blocks;
    "channel"   one channel (of one head) over all tokens of a window;
    "tensor"    all values of a window.

No scale is shared by two windows, so what a window becomes does not depend on the windows beside it.  The range is that
of the values themselves ("dynamic": per channel and per tensor it knows the tokens that follow), or `Bounds` observed
beforehand ("static"), beyond which values saturate.  The scale of a range, the nearest codes and what they represent
are those of `grid`, for every format.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quantizers import grid
from quantizers.errors import FormatError, QuantizationError, ShapeError
from quantizers.formats import FORMATS
from quantizers.scheme import Scheme

Per = Literal["tensor", "token", "channel"]


@dataclass(frozen=True)
class Bounds:
    """The least and the largest value seen: `low` and `high` [n], n being heads × channels, or 1 per tensor."""

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, x: Tensor, per: Per) -> Bounds:
        """Those of `x` [windows, …, tokens, channels] over its windows and tokens."""
        rows = _rows(x, per)[0].unflatten(0, (len(x), -1))
        return cls(rows.amin((0, -1)).float(), rows.amax((0, -1)).float())

    def including(self, other: Bounds) -> Bounds:
        """The bounds of what either saw."""
        return Bounds(torch.minimum(self.low, other.low), torch.maximum(self.high, other.high))


def check(scheme: Scheme, per: Per, static: bool) -> None:
    """Raises FormatError where the format cannot be used so.

    A static range is that of a channel or a tensor; formats with blocks have them along the channels of a token.
    """
    blocks = scheme.format != "int" and bool(FORMATS[scheme.format].blocks)
    if blocks and per != "token":
        raise FormatError(f"format {scheme.name} has blocks of channels: it is rounded per token, not per {per}")
    if static and per == "token":
        raise FormatError("a static range is per channel or per tensor: tokens differ from text to text")


@torch.no_grad()
def rounded(x: Tensor, scheme: Scheme, per: Per, bounds: Bounds | None = None) -> Tensor:
    """What codes of `scheme` represent of `x` [windows, …, tokens, channels], in the type of `x`.

    The group size of `scheme` counts only in formats with blocks.  NaN where a scale is too large for what the format
    stores.  Raises FormatError as `check`, and ShapeError without windows, tokens and channels, or if the bounds are of
    another number of channels.
    """
    check(scheme, per, bounds is not None)
    rows, back = _rows(x, per)
    rows = rows.float()
    size = _block(scheme, rows.shape[1])
    groups = grid.to_groups(rows, size) if size < rows.shape[1] else rows.unsqueeze(1)
    try:
        if bounds is None:
            outer = grid.outer_of(rows, scheme, [len(rows) // len(x)] * len(x))
            params = grid.params_of(groups, scheme, outer)
        else:
            params = grid.params_of(_ends(bounds, len(x), len(rows)), scheme)
    except QuantizationError:
        return torch.full_like(x, torch.nan)
    found = grid.rounded(groups, params, scheme)
    return back(grid.from_groups(found, rows.shape[1])).to(x.dtype)


def _block(scheme: Scheme, columns: int) -> int:
    """Columns that share a scale in a row."""
    if scheme.format == "int" or not FORMATS[scheme.format].blocks:
        return columns
    assert scheme.group_size is not None
    return scheme.group_size


def _ends(bounds: Bounds, windows: int, rows: int) -> Tensor:
    """The ends of the range of every row, as groups [rows, 1, 2]."""
    ends = torch.stack([bounds.low, bounds.high], -1).repeat(windows, 1)
    if len(ends) != rows:
        raise ShapeError(f"bounds of {len(bounds.low)} channels do not fit {rows // windows}")
    return ends.unsqueeze(1)


def _rows(x: Tensor, per: Per) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """x as [rows, n], a scale for each row, the rows of a window together; and the way back."""
    if x.dim() < (2 if per == "token" else 3):
        raise ShapeError(f"per {per}: expected [windows, tokens, channels], got {list(x.shape)}")
    if per == "token":
        return x.reshape(-1, x.shape[-1]), lambda rows: rows.reshape(x.shape)
    if per == "tensor":
        return x.reshape(len(x), math.prod(x.shape[1:])), lambda rows: rows.reshape(x.shape)
    turned = x.transpose(-1, -2)
    return turned.reshape(-1, x.shape[-2]), lambda rows: rows.reshape(turned.shape).transpose(-1, -2).contiguous()
