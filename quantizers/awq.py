"""AWQ (Lin et al. 2023, arXiv 2306.00978): multiply salient input channels before rounding, divide after.

A channel that carries large activations loses less if its weights are scaled up by s before they are
rounded and its inputs scaled down by s, W ≈ Q(W·diag(s))·diag(s)⁻¹ (their equation 2).  The scale is
searched along one line, s = s_X^α with s_X the mean |x| of each channel (equation 5), for α = 0, 1/20 …
19/20, and normalised by √(max s · min s) as in the authors' code.  α = 0 is plain rounding, so the search
never does worse than RTN on the error that it minimises.

The error of a candidate is ‖(W − Ŵ)X‖², which is tr(ΔW·H·ΔWᵀ) up to a constant, so statistics suffice and no
activation is kept.  Layers that share an input share one s, and their errors are added; with `relative`, each is first
divided by tr(W·H·Wᵀ), the squared size of its layer's own output, so that none counts more because its output is large.

With `clip`, after the scales, each group's weights are clamped to ±r·max|w| for the r in 1, 0.95 … 0.55
with the least error of that group's own output, ΔwᵀH_ggΔw with H_gg the group's block on the diagonal of H.

What differs from the paper and its code:

- The paper and its code fold 1/s into the layer before and keep no scale in the quantized layer.  Here s
  stays in the layer as `input_scale` and is counted in `bits_per_weight`; no model structure has to be
  known, and layers without a predecessor to fold into are treated like the others.
- The authors' code measures the error after the whole attention or MLP block for q, k, v and for gate and
  up; here it is the sum of the errors of the layers' own outputs.  A softmax dampens errors of q and k, so where their
  outputs are larger, the sum chooses s for them and not for v; `relative` is nearer to the block's choice.
- Their clip search uses 512 sampled tokens and skips q and k; here it uses all tokens and all layers.
- The grid is `grid.py`, as for the other methods.

Not done: later forks' "duo scaling", which also divides s by a mean of |w|.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from quantizers import grid, kernels
from quantizers.base import ALL_FORMATS, QuantizedWeight, Quantizer
from quantizers.errors import QuantizationError
from quantizers.options import option
from quantizers.scheme import Scheme
from quantizers.stats import LayerStats, finite_hessian

MIN_SCALE = 1e-4
CLIP_STEPS, CLIP_GRID = 10, 20

_BATCH_BYTES = 2**21
"""Size of the rounding errors held at a time, so that they stay in a cache."""

_BLOCKS, _MIN_COLUMNS = 8, 128
"""Block rows of H in `quadratic_form`, which save (1 − 1/8)/2 of the multiplications; few columns are one block."""


@dataclass(frozen=True)
class AWQ(Quantizer):
    """Activation-aware scaling of input channels before rounding."""

    name = "awq"
    version = "2"
    needs_stats = True
    default_calibration = "shared"
    source = "Lin et al. 2023 (arXiv 2306.00978)"
    formats = ALL_FORMATS

    n_grid: int = option(20, "Number of exponents tried, 0, 1/n, … (n-1)/n.", low=1, high=1000)
    clip: bool = option(False, "After the scales, search a clipped range for every group.")
    relative: bool = option(
        False, "Search with the error of each layer as a share of its output, so that all weigh alike.", added=True
    )

    def quantize(self, weight: Tensor, scheme: Scheme, stats: LayerStats | None = None) -> QuantizedWeight:
        """Quantize `weight` [out, in].  Raises QuantizationError if the statistics are not finite."""
        return self.quantize_group([weight], scheme, stats)[0]

    def quantize_group(
        self, weights: Sequence[Tensor], scheme: Scheme, stats: LayerStats | None = None
    ) -> list[QuantizedWeight]:
        """Quantize layers that share one input, `weights[i]` [out_i, in], with one scale search.

        Each report has the exponent that was chosen (ratio), the sum of tr(ΔW·H·ΔWᵀ) over the layers with it and
        without scales (error, error_unscaled; before clipping, and relative where they are compared so), and the
        tokens behind H.
        """
        return self.quantize_grid(weights, [scheme], stats)[0]

    @torch.no_grad()
    def quantize_grid(
        self, weights: Sequence[Tensor], schemes: Sequence[Scheme], stats: LayerStats | None = None
    ) -> list[list[QuantizedWeight]]:
        """As `quantize_group` for several schemes; they share the statistics and the candidates."""
        prepared = self.prepare_grid(weights, schemes, stats)
        if not prepared or stats is None:
            return [[] for _ in schemes]
        weight = torch.cat(prepared)
        hessian = finite_hessian(stats, weight.device)
        mean_abs = stats.mean_abs.to(weight.device)
        ratios = torch.arange(self.n_grid, dtype=mean_abs.dtype, device=mean_abs.device) / self.n_grid
        candidates = channel_scales(mean_abs, ratios)
        columns_first = weight.T.contiguous()
        shares = row_shares(prepared, hessian) if self.relative else None
        sizes, results = [len(layer) for layer in prepared], []
        for scheme in schemes:
            losses = _search(columns_first, candidates, hessian, scheme, sizes, shares)
            best = losses.index(min(loss for loss in losses if loss < float("inf")))
            report = {"ratio": best / self.n_grid, "error": losses[best], "error_unscaled": losses[0]}
            report["n_tokens"] = stats.n_tokens
            results.append(self._coded(weight, candidates[best], hessian, scheme, sizes, report))
        return results

    def _coded(
        self,
        weight: Tensor,
        scales: Tensor,
        hessian: Tensor,
        scheme: Scheme,
        sizes: Sequence[int],
        report: dict[str, float],
    ) -> list[QuantizedWeight]:
        """Codes of `weight` [Σ sizes, in] with the chosen channel `scales` [in], split into layers."""
        columns = weight.shape[1]
        size = scheme.columns_per_group(columns)
        scaled = weight * scales
        outer = grid.outer_of(scaled, scheme, sizes)
        groups = grid.to_groups(scaled, size)
        if self.clip:
            groups = clip_groups(groups, hessian / torch.outer(scales, scales), scheme, outer)
        params = grid.params_of(groups, scheme, outer)
        codes = grid.from_groups(grid.codes_of(groups, params, scheme), columns).contiguous()
        tensors = (codes, params.scale, params.zero, params.outer)
        parts = zip(*([None] * len(sizes) if t is None else t.split(list(sizes)) for t in tensors))
        return [
            QuantizedWeight(c, s, z, scheme, size, input_scale=scales.clone(), outer=o, report=dict(report))
            for c, s, z, o in parts
        ]


def row_shares(layers: Sequence[Tensor], hessian: Tensor) -> Tensor:
    """1/√tr(W·H·Wᵀ) of each layer [out, in], once for each of its rows, [Σ out]; 0 for a layer without any output."""
    sizes = torch.stack([quadratic_form(layer.T[None], hessian)[0] for layer in layers])
    factors = torch.where(sizes > 0, sizes.rsqrt(), 0.0)
    return torch.cat([factor.expand(len(layer)) for factor, layer in zip(factors, layers)])


def _search(
    weight: Tensor,
    candidates: Tensor,
    hessian: Tensor,
    scheme: Scheme,
    sizes: Sequence[int],
    shares: Tensor | None = None,
) -> list[float]:
    """tr(ΔW·H·ΔWᵀ) of `weight` [in, Σ sizes] under each of the `candidates` [n, in], times the rows' `shares`.

    Raises QuantizationError if none is finite.
    """
    size = scheme.columns_per_group(len(weight))
    count = max(1, _BATCH_BYTES // (4 * weight.numel()))
    losses: list[float] = []
    for scales in candidates.split(count):
        if scheme.format == "int":
            delta = kernels.rounding_errors(weight, scales, scheme.bits, size, scheme.symmetric)
        else:
            delta = torch.stack([_rounding_error(weight, one, scheme, sizes) for one in scales])
        losses += quadratic_form(delta if shares is None else delta * shares, hessian).tolist()
    if not any(loss < float("inf") for loss in losses):
        raise QuantizationError("no exponent of the AWQ search gives a finite error")
    return losses


def _rounding_error(weight: Tensor, scales: Tensor, scheme: Scheme, sizes: Sequence[int]) -> Tensor:
    """Ŵ − W of `weight` [in, Σ sizes], its columns multiplied by `scales` [in] before rounding and divided after."""
    scaled = weight.T * scales
    groups = grid.to_groups(scaled, scheme.columns_per_group(len(weight)))
    params = grid.params_of(groups, scheme, grid.outer_of(scaled, scheme, sizes))
    rounded = grid.weights_of(grid.codes_of(groups, params, scheme), params, scheme)
    return (grid.from_groups(rounded, len(weight)) / scales).T - weight


def quadratic_form(delta: Tensor, hessian: Tensor) -> Tensor:
    """Σ over rows of δᵀHδ, [n], for `delta` [n, in, rows] and the symmetric `hessian` [in, in].

    Only the blocks of H on and below the diagonal are multiplied; those below count twice.
    """
    columns = len(hessian)
    step = max(_MIN_COLUMNS, -(-columns // _BLOCKS))
    total = delta.new_zeros(len(delta))
    for start in range(0, columns, step):
        stop = min(start + step, columns)
        moved = hessian[start:stop, start:stop] @ delta[:, start:stop]
        if start:
            moved += 2 * (hessian[start:stop, :start] @ delta[:, :start])
        total += moved.mul_(delta[:, start:stop]).sum((1, 2))
    return total


def channel_scales(mean_abs: Tensor, ratios: Tensor) -> Tensor:
    """s = mean|x|^ratio [n, in] for every ratio [n] and channel, at least 1e-4, normalised by √(max·min)."""
    scales = mean_abs.pow(ratios.unsqueeze(1)).clamp(min=MIN_SCALE)
    return scales / (scales.amax(1, keepdim=True) * scales.amin(1, keepdim=True)).sqrt()


def clip_groups(groups: Tensor, hessian: Tensor, scheme: Scheme, outer: Tensor | None = None) -> Tensor:
    """`groups` [rows, groups, size], each clamped to the range with the least error of its output.

    `hessian` [in, in] belongs to the inputs of these (scaled) weights, `outer` is their `grid.outer_of`.
    """
    _, count, size = groups.shape
    fill = count * size - hessian.shape[0]
    padded = functional.pad(hessian, (0, fill, 0, fill)).view(count, size, count, size)
    blocks = padded.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # [groups, size, size]
    top = groups.abs().amax(-1, keepdim=True)
    least = torch.full_like(top, torch.inf)
    best = top
    for step in range(CLIP_STEPS):
        limit = top * (1 - step / CLIP_GRID)
        clamped = groups.clamp(-limit, limit)
        params = grid.params_of(clamped, scheme, outer)
        delta = grid.weights_of(grid.codes_of(clamped, params, scheme), params, scheme) - groups
        moved = (delta.transpose(0, 1) @ blocks).transpose(0, 1)
        error = (moved * delta).sum(-1, keepdim=True)
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(better, limit, best)
    return groups.clamp(-best, best)
