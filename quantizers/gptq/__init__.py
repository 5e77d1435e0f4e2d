"""GPTQ (Frantar et al. 2022, arXiv 2210.17323): round columns one by one and let the others absorb each error.

The layer's loss ‖(W − Ŵ)X‖² is quadratic with Hessian H = 2XXᵀ, which all rows share.  When column j is rounded with
error w_j − ŵ_j, the best change of the remaining columns is −(w_j − ŵ_j) / [H⁻¹]_jj · [H⁻¹]_j,: (equation 2 of the
paper), after which row and column j are eliminated from H⁻¹ (equation 3).  With a fixed order of columns, all rows of
H⁻¹ that are ever needed are rows of its upper Cholesky factor U, H⁻¹ = UᵀU (step 3, Algorithm 1):

    W[:, j:] −= (w_j − ŵ_j) / U_jj · U_j,j:

`tests/reference/gptq.py` is Algorithm 1 as printed.  This package computes the same numbers another way, with a third
fewer operations and smaller rounding errors, because it never inverts H.  Cholesky in reversed order gives H = RRᵀ with
R upper triangular, so U = R⁻¹, and the diagonal blocks of U are the inverses of R's.  Let F be the columns
already rounded, B the next block, and Δ = W − Ŵ the differences from the *original* weights.  ‖ΔR‖² is minimal over Δ_B
where Δ_B·R_BB = −Δ_F·R_FB, so the weights that the algorithm has reached when it comes to block B are

    W_B + Δ_F · R_FB · R_BB⁻¹.

One product per block replaces the updates of all later columns (the paper's step 2, lazy batches).  Within the block
the recursion above runs with U_BB = R_BB⁻¹.

    damping.py    R, and the retry with more damping where H cannot be factored
    solve.py      the blocks: the two formulas above
    batch.py      schemes solved together: their scales and codes
    ../kernels/   the recursion within a block

Choices that the paper leaves open are made as in the authors' code, with the exceptions named here:

- Scales.  A group's scale is set when its first column is reached, from the weights as they were at the start of the
  current block of `block_size` columns: they include the errors of earlier blocks only (`group_scale_from`).
- Formats.  The scale of a whole tensor (NVFP4) comes from the original weights, and so are all scales of formats whose
  blocks hold several groups (K-quants), as with `static_groups`.
- Order.  `act_order` takes the columns by decreasing diag H.  Groups are then formed of neighbours in that order;
  `static_groups` keeps the groups of the original order, with scales from the original weights.
- Dead columns, whose inputs were always zero (diag H = 0), get H_jj = 1, and their weights are set to zero or only
  rounded (`dead`).  They take no part in the feedback.  Unlike in the authors' code they do not count in mean diag H,
  so that `damping` means the same in every layer, nor, where there is one scale per row, in the row's range.
- Damping.  `damping` × mean diag H is added to diag H.  If H still cannot be factored, the damping is multiplied by ten
  and tried again, up to 1; the report says which damping was used.  If that fails too, QuantizationError is raised: no
  layer is silently rounded to nearest instead.

Layers that share an input share H: their rows are stacked and solved together, with one factorisation, and so are all
schemes.  Not done: choosing the order by anything but diag H, and updating H while columns are rounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantizers import grid
from quantizers.base import ALL_FORMATS, QuantizedWeight, Quantizer
from quantizers.gptq.damping import damped_factor
from quantizers.gptq.solve import solve
from quantizers.options import option
from quantizers.parallel import over_rows
from quantizers.scheme import Scheme
from quantizers.stats import LayerStats, finite_hessian

_MIN_ROWS_PER_THREAD = 512
"""With fewer rows a product is slow; torch's own threads then share every operation instead."""


@dataclass(frozen=True)
class GPTQ(Quantizer):
    """Column-wise rounding with second-order error feedback."""

    name = "gptq"
    version = "3"
    needs_stats = True
    default_calibration = "sequential"
    source = "Frantar et al. 2022 (arXiv 2210.17323)"
    formats = ALL_FORMATS

    damping: float = option(0.01, "Fraction of the mean of diag H that is added to diag H.", low=0, high=1)
    act_order: bool = option(False, "Take the columns by decreasing diag H, the most active inputs first.")
    static_groups: bool = option(False, "Take all scales from the original weights, in the original groups.")
    block_size: int = option(128, "Columns between two updates of all later columns.", low=1, high=65536)
    group_scale_from: str = option(
        "block_start",
        "Take a group's scale from the weights before the current block of columns, or as they are now.",
        choices=("block_start", "current"),
    )
    dead: str = option("zero", "What to do with weights whose input was always zero.", choices=("zero", "round"))
    mse: bool = option(False, "Shrink each group's range to where the sum of |error|^2.4 is least.")

    def quantize(self, weight: Tensor, scheme: Scheme, stats: LayerStats | None = None) -> QuantizedWeight:
        """Quantize `weight` [out, in].  Raises QuantizationError if H is not finite or cannot be factored."""
        return self.quantize_group([weight], scheme, stats)[0]

    def quantize_group(
        self, weights: Sequence[Tensor], scheme: Scheme, stats: LayerStats | None = None
    ) -> list[QuantizedWeight]:
        """Quantize layers that share one input, `weights[i]` [out_i, in], with one factorisation.

        Each report has the damping that was used, its retries, the dead columns, and the tokens behind H.
        """
        return self.quantize_grid(weights, [scheme], stats)[0]

    @torch.no_grad()
    def quantize_grid(
        self, weights: Sequence[Tensor], schemes: Sequence[Scheme], stats: LayerStats | None = None
    ) -> list[list[QuantizedWeight]]:
        """As `quantize_group` for several schemes, all solved together with one factorisation."""
        prepared = self.prepare_grid(weights, schemes, stats)
        if not prepared or stats is None:
            return [[] for _ in schemes]
        stacked = prepared[0] if len(prepared) == 1 else torch.cat(prepared)  # [Σ out, in]
        hessian = finite_hessian(stats, stacked.device)
        diagonal = hessian.diagonal()
        dead = diagonal == 0
        unit = diagonal.sum() / (~dead).sum().clamp(min=1)
        diagonal[dead] = 1
        order = torch.argsort(diagonal, descending=True, stable=True) if self.act_order else None
        if order is not None:
            hessian = hessian[order][:, order]
        factor, damping, retries = damped_factor(hessian, self.damping, unit)
        outers = [grid.outer_of(stacked, scheme, [len(weight) for weight in prepared]) for scheme in schemes]

        def solved(first: int, last: int) -> list[QuantizedWeight]:
            rows = stacked[first:last].T.clone(memory_format=torch.contiguous_format)  # [in, rows]
            if self.dead == "zero":
                rows[dead] = 0
            return solve(
                rows,
                factor,
                order,
                schemes,
                [None if outer is None else outer[first:last] for outer in outers],
                block_size=self.block_size,
                blocks_end_at_groups=self.group_scale_from == "current" and not self.static_groups,
                static_groups=self.static_groups,
                mse=self.mse,
            )

        on_cpu = stacked.device.type == "cpu"
        threads = min(torch.get_num_threads(), len(stacked) // _MIN_ROWS_PER_THREAD) if on_cpu else 1
        report = {
            "damping": damping,
            "damping_retries": retries,
            "dead_columns": int(dead.sum()),
            "n_tokens": stats.n_tokens,
        }
        by_scheme = zip(*over_rows(solved, len(stacked), threads))
        return [_split(parts, [len(weight) for weight in prepared], report) for parts in by_scheme]


def _split(
    parts: Sequence[QuantizedWeight], sizes: Sequence[int], report: Mapping[str, float | int | str]
) -> list[QuantizedWeight]:
    """Layers of `sizes[i]` rows from `parts`, consecutive rows of the stacked layers."""
    first, *others = parts
    names = ["codes", "scale", "zero", *([] if first.outer is None else ["outer"])]
    layers = []
    for name in names:
        rows = torch.cat([getattr(part, name) for part in parts]) if others else getattr(first, name)
        layers.append(rows.split(list(sizes)))
    return [replace(first, **dict(zip(names, tensors)), report=dict(report)) for tensors in zip(*layers)]
