"""What GPTQ's inner loop works on."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Block(NamedTuple):
    """A block of columns for n schemes that differ in their bits only; the last dimension of each is contiguous."""

    state: Tensor
    """[n, columns, rows]: the weights as the blocks before left them; may be overwritten."""
    original: Tensor
    """[columns, rows]: the weights as they were at first."""
    feedback: Tensor
    """[columns, columns]: row j is U_j,j: / U_jj; what lies below the diagonal is not read."""
    scale: Tensor
    """[n, groups, rows]."""
    zero: Tensor
    """[n, groups, rows]: whole numbers."""
    group_of: Tensor
    """[columns] int64."""
    bits: Tensor
    """[n] int64."""
    codes: Tensor
    """[n, columns, rows] uint8; written."""
    delta: Tensor
    """[n, columns, rows]; written: `original` minus what the codes stand for; not finite if the feedback overflowed."""
