"""Hadamard rotation of a layer's inputs in front of a quantizer: W·x = (W·Q)(Qᵀ·x) with Q orthogonal.

A rotation spreads outliers over all columns that it mixes, so that ranges of groups shrink (QuIP#, Tseng et al. 2024,
arXiv 2402.04396; QuaRot, Ashkboos et al. 2024, arXiv 2404.00456).  Q is a diagonal of random signs followed by Hadamard
matrices along the diagonal, each divided by the square root of its order.  The quantizer sees W·Q and the statistics of
Qᵀ·x, QᵀHQ and QᵀMQ; what it returns is rotated back.  That is the weight whose layer computes what a layer with rotated
codes and inputs rotated online computes, so no model has to know of the rotation, and any architecture works.

Orders: powers of two; q + 1 for primes q ≡ 3 mod 4 and 2(q + 1) for primes q ≡ 1 mod 4 (Paley 1933); and twice each.
So 12, 20, 28, 96 and 11,008 have whole rotations.  A row of another length is rotated in equal blocks of the largest
order that divides it; a row of odd length has only its signs changed.

For formats with blocks of their own (MX, NVFP4) the rotation is in blocks of that size, so that no outlier spreads
beyond its scale (MR-GPTQ, Egiazarian et al. 2025, arXiv 2509.23202); for others it mixes whole rows.

What differs from QuaRot: nothing is folded into the layers before, the residual stream is not rotated, and each layer
has a rotation of its own inputs, which at inference costs a product for each layer.  AWQ and SmoothQuant are without a
rotated form: mean and largest |x| of rotated inputs do not follow from H, and rotation removes what both look for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from quantizers.base import QuantizedWeight, Quantizer
from quantizers.formats import FORMATS
from quantizers.options import option
from quantizers.scheme import Scheme
from quantizers.stats import LayerStats, Rotation

MAX_ORDER = 4096
"""The largest order: a Hadamard matrix is stored whole."""


@cache
def hadamard(order: int) -> Tensor | None:
    """A Hadamard matrix [order, order] of entries ±1 with H·Hᵀ = order·I, float32; None where no construction fits."""
    if order == 1:
        return torch.ones(1, 1)
    if order % 2:
        return None
    if _is_prime(order - 1) and order % 4 == 0:
        return torch.eye(order) + _bordered(order - 1, -1.0)
    half = order // 2
    if _is_prime(half - 1) and half % 4 == 2:
        pair, other = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
        return torch.kron(_bordered(half - 1, 1.0), pair) + torch.kron(torch.eye(half), other)
    smaller = hadamard(half)
    return None if smaller is None else torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), smaller)


def _bordered(prime: int, corner: float) -> Tensor:
    """Quadratic characters χ(i − j) modulo `prime`, with a border of ones above and of `corner` on the left."""
    squares = torch.tensor([value * value % prime for value in range(1, prime)])
    character = torch.full((prime,), -1.0)
    character[squares] = 1.0
    character[0] = 0.0
    index = torch.arange(prime)
    matrix = torch.ones(prime + 1, prime + 1)
    matrix[1:, 1:] = character[(index[:, None] - index) % prime]
    matrix[1:, 0], matrix[0, 0] = corner, 0.0
    return matrix


def _is_prime(number: int) -> bool:
    return number > 2 and number % 2 == 1 and all(number % odd for odd in range(3, int(number**0.5) + 1, 2))


@cache
def order_for(columns: int, most: int) -> int:
    """The largest order up to `most` of a Hadamard matrix that divides a row of `columns`."""
    orders = (order for order in range(min(columns, most, MAX_ORDER), 0, -1) if columns % order == 0)
    return next(order for order in orders if hadamard(order) is not None)


def rotation_of(columns: int, most: int, seed: int, device: torch.device | str = "cpu") -> Rotation:
    """The rotation of a row of `columns` in blocks of at most `most`, with signs drawn by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (columns,), generator=generator) * 2.0 - 1
    order = order_for(columns, most)
    matrix = hadamard(order)
    assert matrix is not None
    return Rotation(signs.to(device), (matrix / order**0.5).to(device))


@dataclass(frozen=True)
class Rotated(Quantizer):
    """Base of quantizers that rotate and then do what `plain` does; a subclass inherits from both."""

    plain: ClassVar[type[Quantizer]]
    source = "Ashkboos et al. 2024, QuaRot (arXiv 2404.00456)"

    rotation_block: int = option(
        0,
        "Columns rotated together, at most; 0: whole rows, or the blocks of formats that have their own.",
        low=0,
        high=65536,
    )
    rotation_seed: int = option(0, "Seed of the random signs.", low=0, high=2**63 - 1)

    def quantize(self, weight: Tensor, scheme: Scheme, stats: LayerStats | None = None) -> QuantizedWeight:
        """Quantize `weight` [out, in].  Raises what `plain` raises."""
        return self.quantize_group([weight], scheme, stats)[0]

    def quantize_grid(
        self, weights: Sequence[Tensor], schemes: Sequence[Scheme], stats: LayerStats | None = None
    ) -> list[list[QuantizedWeight]]:
        """`quantize_group` for each scheme, whose rotations may differ."""
        self.prepare_grid(weights, schemes, stats)
        return [self.quantize_group(weights, scheme, stats) for scheme in schemes]

    @torch.no_grad()
    def quantize_group(
        self, weights: Sequence[Tensor], scheme: Scheme, stats: LayerStats | None = None
    ) -> list[QuantizedWeight]:
        """Quantize layers that share one input, `weights[i]` [out_i, in], under one rotation.

        Each report has the order of the Hadamard matrices (rotation_order) beside what `plain` reports.
        """
        prepared = self.prepare_grid(weights, [scheme], stats)
        if not prepared:
            return []
        columns = prepared[0].shape[1]
        rotation = rotation_of(columns, self._most(scheme, columns), self.rotation_seed, prepared[0].device)
        turned = stats.rotated(rotation) if stats is not None and self.needs_stats else None
        plain = self.plain(**{field.name: getattr(self, field.name) for field in fields(self.plain)})
        results = plain.quantize_group([rotation.apply(weight) for weight in prepared], scheme, turned)
        about = {"rotation_order": len(rotation.matrix)}
        return [replace(one, rotation=rotation, report={**one.report, **about}) for one in results]

    def _most(self, scheme: Scheme, columns: int) -> int:
        if self.rotation_block:
            return self.rotation_block
        known = FORMATS.get(scheme.format)
        return scheme.columns_per_group(columns) if known is not None and known.blocks else columns
