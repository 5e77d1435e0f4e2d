"""LayerStats: all that a quantizer learns about a layer's inputs, in two or three small tensors.

Why statistics instead of activations: GPTQ needs only H = 2/n Σ xxᵀ, the Hessian of the layer's objective ‖(W − Ŵ)X‖²
(Frantar et al. 2022, section 3.3), and AWQ minimises the same objective, which is tr(ΔW·H·ΔWᵀ) up to a constant.  So
memory does not grow with the number of calibration tokens, and one pass serves every method at every bit-width.

Methods that match the outputs WX of the full-precision model with inputs X̃ of the quantized one need, besides
H = 2/n X̃X̃ᵀ, how the two differ, M = 2/n (X − X̃)X̃ᵀ: ‖WX − ŴX̃‖² depends on Ŵ through H and H + M alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from quantizers.errors import QuantizationError, ShapeError

_CHUNK = 4096  # tokens converted to float32 at a time, which bounds the memory of `update` and fits a cache
_BLOCKS, _MIN_COLUMNS = 8, 128  # block rows of H; products of fewer columns are slow


@dataclass(frozen=True, eq=False)
class Rotation:
    """An orthogonal map Q of a layer's inputs: `signs` [in] of ±1, then a `matrix` [block, block] for every block."""

    signs: Tensor
    matrix: Tensor

    def apply(self, rows: Tensor) -> Tensor:
        """rows·Q, for weights or inputs `rows` [..., in]."""
        blocks = (rows * self.signs).unflatten(-1, (-1, len(self.matrix)))
        return (blocks @ self.matrix).flatten(-2)

    def undo(self, rows: Tensor) -> Tensor:
        """rows·Qᵀ, the inverse of `apply`."""
        blocks = rows.unflatten(-1, (-1, len(self.matrix)))
        return (blocks @ self.matrix.T).flatten(-2) * self.signs


class LayerStats:
    """Statistics of a layer's inputs, accumulated over tokens; every tensor read from it is a fresh copy.

    A quantizer that damps its Hessian in place therefore cannot damp the one that other layers share.
    """

    def __init__(self, in_features: int, device: torch.device | str | None = None) -> None:
        self.in_features = in_features
        self.n_tokens = 0
        self._outer = torch.zeros(in_features, in_features, dtype=torch.float32, device=device)
        self._abs = torch.zeros(in_features, dtype=torch.float32, device=device)
        self._max = torch.zeros(in_features, dtype=torch.float32, device=device)
        self._mismatch: Tensor | None = None

    @classmethod
    def from_inputs(cls, x: Tensor, full: Tensor | None = None) -> LayerStats:
        """Statistics of inputs `x` [..., in], on the device of `x`; `full` as in `update`."""
        stats = cls(x.shape[-1], device=x.device)
        stats.update(x, full)
        return stats

    @torch.no_grad()
    def update(self, x: Tensor, full: Tensor | None = None) -> None:
        """Add inputs `x` [..., in] of any floating type.  `full`: inputs of the same tokens in the full-precision
        model, None where they are the same.  Raises ShapeError for another width, or if the two differ in shape.
        """
        if x.shape[-1] != self.in_features:
            raise ShapeError(f"inputs have {x.shape[-1]} features, these statistics {self.in_features}")
        if full is not None and full.shape != x.shape:
            raise ShapeError(f"inputs of shape {list(x.shape)} and {list(full.shape)} are not of the same tokens")
        tokens = x.reshape(-1, self.in_features)
        others = None if full is None else full.reshape(-1, self.in_features).split(_CHUNK)
        for index, chunk in enumerate(tokens.split(_CHUNK)):
            rows = chunk.to(self._outer)
            self._add_outer(rows)
            size = rows.abs()
            self._abs.addmv_(size.T, rows.new_ones(len(rows)))
            if len(size):
                torch.maximum(self._max, size.amax(0), out=self._max)
            if others is not None:
                self._add_mismatch((others[index].to(rows) - rows).T @ rows)
        self.n_tokens += tokens.shape[0]

    def _add_outer(self, rows: Tensor) -> None:
        """Add Σ xxᵀ up to the diagonal block of each block row; the rest of H follows by symmetry."""
        for start, stop in self._block_rows():
            self._outer[start:stop, :stop].addmm_(rows[:, start:stop].T, rows[:, :stop])

    def _add_mismatch(self, product: Tensor) -> None:
        self._mismatch = product if self._mismatch is None else self._mismatch.add_(product)

    def _block_rows(self) -> Iterator[tuple[int, int]]:
        step = max(_MIN_COLUMNS, -(-self.in_features // _BLOCKS))
        for start in range(0, self.in_features, step):
            yield start, min(start + step, self.in_features)

    def merge(self, other: LayerStats) -> None:
        """Add the tokens that `other` has seen, for example on another device."""
        if other.in_features != self.in_features:
            raise ShapeError(f"statistics of {other.in_features} features do not fit {self.in_features}")
        self._outer.add_(other._outer.to(self._outer))
        self._abs.add_(other._abs.to(self._abs))
        torch.maximum(self._max, other._max.to(self._max), out=self._max)
        if other._mismatch is not None:
            self._add_mismatch(other._mismatch.to(self._outer, copy=True))
        self.n_tokens += other.n_tokens

    @property
    def device(self) -> torch.device:
        """The device of the accumulators."""
        return self._outer.device

    @property
    def hessian(self) -> Tensor:
        """H = 2/n Σ xxᵀ, [in, in], float32; zeros before the first token."""
        full = self._outer * (2.0 / max(self.n_tokens, 1))
        for start, stop in self._block_rows():
            full[:start, start:stop] = full[start:stop, :start].T
        return full

    @property
    def mismatch(self) -> Tensor:
        """M = 2/n Σ (x_full − x)·xᵀ, [in, in], float32; zeros where the inputs do not differ."""
        if self._mismatch is None:
            return torch.zeros_like(self._outer)
        return self._mismatch * (2.0 / max(self.n_tokens, 1))

    @property
    def mean_abs(self) -> Tensor:
        """Mean |x| of every input feature, [in], float32; zeros before the first token."""
        return self._abs / max(self.n_tokens, 1)

    @property
    def max_abs(self) -> Tensor:
        """Largest |x| of every input feature, [in], float32; zeros before the first token."""
        return self._max.clone()

    def rotated(self, rotation: Rotation) -> LayerStats:
        """Statistics of rotated inputs: QᵀHQ and QᵀMQ; mean and largest |x| do not follow from these, and are NaN."""
        turned = LayerStats(self.in_features, self.device)
        turned._outer = rotation.apply(rotation.apply(self.hessian * (max(self.n_tokens, 1) / 2)).T)
        if self._mismatch is not None:
            turned._mismatch = rotation.apply(rotation.apply(self._mismatch).T).T.contiguous()
        turned._abs, turned._max = torch.full_like(self._abs, torch.nan), torch.full_like(self._max, torch.nan)
        turned.n_tokens = self.n_tokens
        return turned


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite.  A finite sum proves it quickly; an infinite one may be an overflow."""
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def finite_hessian(stats: LayerStats, device: torch.device) -> Tensor:
    """A fresh copy of H on `device`.  Raises QuantizationError if no token was seen or H is not finite."""
    if stats.n_tokens == 0:
        raise QuantizationError("no calibration token reached this layer")
    hessian = stats.hessian.to(device)
    if not all_finite(hessian):
        raise QuantizationError(f"the Hessian of {stats.n_tokens} tokens holds NaN or infinite values")
    return hessian
