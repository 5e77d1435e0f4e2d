"""What GPTAQ and Qronos share: H, how it differs between the two models, and rounding column by column.

Both minimise ‖WX − ŴX̃‖², with X the inputs in the full-precision model and X̃ those in the model that is quantized so
far.  They need two statistics, H = 2/n X̃X̃ᵀ and M = 2/n (X − X̃)X̃ᵀ (`LayerStats.mismatch`), and the upper Cholesky
factor U of the inverse, H⁻¹ = UᵀU.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from quantizers import grid
from quantizers.base import ALL_FORMATS, QuantizedWeight, Quantizer
from quantizers.errors import QuantizationError
from quantizers.formats import FORMATS
from quantizers.gptq.damping import damped_factor
from quantizers.options import option
from quantizers.scheme import Scheme
from quantizers.stats import LayerStats, all_finite, finite_hessian


@dataclass(frozen=True)
class Problem:
    """Statistics of a layer in the order in which its columns are rounded, `order` [in].

    `hessian` is damped; `mismatch` is M; `inverse` is U; all [in, in].  `report` has what damping it took.
    """

    order: Tensor
    hessian: Tensor
    mismatch: Tensor
    inverse: Tensor
    dead: Tensor
    report: dict[str, float | int | str]


def problem(stats: LayerStats, device: torch.device, damping: float, act_order: bool) -> Problem:
    """The statistics on `device`, damped as in GPTQ.  Raises QuantizationError if H is unusable."""
    hessian, mismatch = finite_hessian(stats, device), stats.mismatch.to(device)
    if not all_finite(mismatch):
        raise QuantizationError("the inputs of the full-precision model hold NaN or infinite values")
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    unit = diagonal.sum() / (~dead).sum().clamp(min=1)
    diagonal[dead] = 1
    order = torch.arange(len(hessian), device=device)
    if act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
    hessian, mismatch = hessian[order][:, order], mismatch[order][:, order]
    factor, used, retries = damped_factor(hessian.clone(), damping, unit)
    hessian.diagonal().add_(used * unit)
    identity = torch.eye(len(hessian), device=device)
    inverse = torch.linalg.solve_triangular(factor.triu(), identity, upper=True)
    report: dict[str, float | int | str] = {
        "damping": used,
        "damping_retries": retries,
        "dead_columns": int(dead.sum()),
        "n_tokens": stats.n_tokens,
        "mismatch": float(mismatch.norm() / stats.hessian.norm().clamp(min=1e-30)),
    }
    return Problem(order, hessian, mismatch, inverse, dead[order], report)


class Rounding:
    """Codes and scales of a layer while its columns, in the order of rounding, are set one after another.

    The scale of a group is set from the weights when the block of columns in which it begins is reached, as in GPTQ;
    those of formats whose blocks hold several groups are set from the original weights, in the original order.
    """

    def __init__(self, weight: Tensor, scheme: Scheme, order: Tensor) -> None:
        rows, columns = weight.shape
        self.scheme, self.order, self.size = scheme, order, scheme.columns_per_group(columns)
        self.static = scheme.format != "int" and FORMATS[scheme.format].whole_rows
        self.outer = grid.outer_of(weight, scheme)
        self.group_of = torch.arange(columns, device=weight.device) // self.size
        self.codes = torch.empty(rows, columns, dtype=torch.uint8, device=weight.device)
        self.scale = weight.new_empty(rows, scheme.groups(columns))
        self.zero = torch.empty_like(self.scale)
        if self.static:
            self.scale, self.zero, self.outer = grid.params_of(grid.to_groups(weight, self.size), scheme, self.outer)
            self.group_of = self.group_of[order]

    def take_scales(self, state: Tensor, start: int, stop: int) -> None:
        """Set the scales of the groups whose first column is in [start, stop) from `state` [rows, in]."""
        first, last = -(-start // self.size), -(-stop // self.size)
        if first < last and not self.static:
            groups = grid.to_groups(state[:, first * self.size : last * self.size], self.size)
            params = grid.params_of(groups, self.scheme, self.outer)
            self.scale[:, first:last], self.zero[:, first:last] = params.scale, params.zero

    def nearest(self, column: Tensor, index: int) -> Tensor:
        """Round `column` [rows], the one at `index`, and return what its codes represent."""
        group = self.group_of[index]
        params = grid.Params(self.scale[:, group, None], self.zero[:, group, None], self.outer)
        codes = grid.codes_of(column[:, None, None].contiguous(), params, self.scheme)
        self.codes[:, self.order[index]] = codes[:, 0, 0]
        return grid.weights_of(codes, params, self.scheme)[:, 0, 0]

    def result(self, report: dict[str, float | int | str]) -> QuantizedWeight:
        """The layer, its groups in the order of rounding where that is not the original one."""
        reordered = not torch.equal(self.order, torch.arange(len(self.order), device=self.order.device))
        permuted = reordered and not self.static and self.scale.shape[1] > 1
        order = self.order if permuted else None
        return QuantizedWeight(
            self.codes, self.scale, self.zero, self.scheme, self.size,
            permutation=order, outer=self.outer, report=report,
        )  # fmt: skip


def round_columns(
    state: Tensor,
    rounding: Rounding,
    inverse: Tensor,
    block_size: int,
    *,
    transfer: Tensor | None = None,
    first: Tensor | None = None,
) -> None:
    """Round `state` [rows, in] from left to right, which is overwritten; U = `inverse` diffuses each error.

    After column j, w − ŵ being its error: W[:, l] += w·P_jl − (w − ŵ)·U_jl/U_jj for l > j, with P = `transfer`.  The
    columns after a block of `block_size` are updated at its end.  `first` [rows], if any, is rounded in place of
    column 0.  Raises QuantizationError if the feedback overflows.
    """
    columns = state.shape[1]
    for start in range(0, columns, block_size):
        stop = min(start + block_size, columns)
        seen = state if first is None or start else torch.cat([first[:, None], state[:, 1:]], 1)
        rounding.take_scales(seen, start, stop)
        errors, reached = torch.empty_like(state[:, start:stop]), torch.empty_like(state[:, start:stop])
        for j in range(start, stop):
            w = state[:, j]
            rounded = rounding.nearest(w if first is None or j else first, j)
            errors[:, j - start], reached[:, j - start] = (w - rounded) / inverse[j, j], w
            later = slice(j + 1, stop)
            state[:, later].addr_(errors[:, j - start], inverse[j, later], alpha=-1)
            if transfer is not None:
                state[:, later].addr_(w, transfer[j, later])
        state[:, stop:].addmm_(errors, inverse[start:stop, stop:], alpha=-1)
        if transfer is not None:
            state[:, stop:].addmm_(reached, transfer[start:stop, stop:])
        if not all_finite(errors):
            raise QuantizationError("the error feedback overflowed: H is too close to singular")


@dataclass(frozen=True)
class Mismatched(Quantizer):
    """Base of quantizers that know a layer's inputs in both models; a subclass says how the columns are rounded."""

    needs_stats = True
    needs_mismatch = True
    default_calibration = "sequential"
    formats = ALL_FORMATS

    damping: float = option(0.01, "Fraction of the mean of diag H that is added to diag H.", low=0, high=1)
    act_order: bool = option(False, "Take the columns by decreasing diag H, the most active inputs first.")
    block_size: int = option(128, "Columns between two updates of all later columns.", low=1, high=65536)

    @torch.no_grad()
    def quantize(self, weight: Tensor, scheme: Scheme, stats: LayerStats | None = None) -> QuantizedWeight:
        """Quantize `weight` [out, in].  Raises QuantizationError if H is not finite or cannot be factored.

        The report has the damping used and ‖M‖/‖H‖ (mismatch), 0 where the two models' inputs are the same.
        """
        weight = self.prepare(weight, scheme, stats)
        assert stats is not None  # checked by `prepare`
        known = problem(stats, weight.device, self.damping, self.act_order)
        rounding = Rounding(weight, scheme, known.order)
        state = weight[:, known.order].clone()
        state[:, known.dead] = 0
        self._round(state, known, rounding)
        return rounding.result(known.report)

    @abstractmethod
    def _round(self, state: Tensor, known: Problem, rounding: Rounding) -> None:
        """Round the columns of `state` [out, in], in the order of rounding, which may be overwritten."""
