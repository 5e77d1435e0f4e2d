"""Rules for the scale of a group: from its weights, or only their range, to what the format stores.

A group represents scale·level − zero, with the levels of its format and a `zero` in units of weights, which is 0 for
all formats but the affine ones of llama.cpp.  A scale is rounded here to what the format can store, so that codes are
found for the scale that will be read back.

    range rules     from the smallest and largest weight: `absmax`, `extreme`, `half_extreme`, `half_range`,
                    `power_of_two`, `two_level`
    search rules    from all weights: `four_over_six`, and the two searches of K-quants

`outer` is the second level of a two-level format, [rows, blocks of groups, 1 or 2]: NVFP4's scale of a whole tensor,
repeated for every row, or the float16 scales (and minima) of K-quants' blocks of 256.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from quantizers.errors import QuantizationError
from quantizers.levels import Levels, floating

E4M3_LEAST = 2.0**-9
"""The smallest positive E4M3; a smaller scale would turn a whole group into zeros."""

E8M0_RANGE = -127, 127


class Params(NamedTuple):
    """`scale` and `zero` [rows, groups] of every group, and the `outer` level they are multiples of, or None."""

    scale: Tensor
    zero: Tensor
    outer: Tensor | None = None


def absmax(low: Tensor, high: Tensor, levels: Levels, outer: Tensor | None) -> Params:
    """The largest magnitude becomes the largest level, in float32."""
    top = max(levels.highest, -levels.lowest)
    return _symmetric(torch.maximum(-low, high) / top)


def half_absmax(low: Tensor, high: Tensor, levels: Levels, outer: Tensor | None) -> Params:
    """As `absmax`, rounded to float16."""
    return _symmetric(_half(absmax(low, high, levels, outer).scale))


def extreme(low: Tensor, high: Tensor, levels: Levels, outer: Tensor | None) -> Params:
    """The weight of largest magnitude becomes the lowest level, so the scale is negative where it is positive."""
    return _symmetric(torch.where(-low >= high, low, high) / levels.lowest)


def half_extreme(low: Tensor, high: Tensor, levels: Levels, outer: Tensor | None) -> Params:
    """As `extreme`, rounded to float16."""
    return _symmetric(_half(extreme(low, high, levels, outer).scale))


def half_range(low: Tensor, high: Tensor, levels: Levels, outer: Tensor | None) -> Params:
    """The range of the weights is mapped to the levels 0 … n; scale and minimum in float16."""
    scale = _half((high - low) / levels.highest)
    return Params(torch.where(scale == 0, 1.0, scale), -_half(low))


def power_of_two(low: Tensor, high: Tensor, levels: Levels, outer: Tensor | None) -> Params:
    """2^(floor(log2 max|w|) − emax) with emax the exponent of the largest level: OCP Microscaling 1.0, section 6.3.

    The largest weight of a group may lie above the largest level, by up to a factor 2^(emax + 1)/level; it saturates.
    """
    top = torch.maximum(-low, high)
    emax = int(torch.frexp(levels.values[-1]).exponent) - 1
    exponent = (torch.frexp(top).exponent - 1 - emax).clamp(*E8M0_RANGE)
    return _symmetric(torch.ldexp(torch.ones_like(top), torch.where(top == 0, 0, exponent)))


def two_level(low: Tensor, high: Tensor, levels: Levels, outer: Tensor | None, top: float | None = None) -> Params:
    """The largest magnitude becomes `top` (by default the largest level); the scale is an E4M3 multiple of `outer`."""
    assert outer is not None
    ratio = torch.maximum(-low, high) / (top or levels.highest) / outer.squeeze(-1)
    e4m3 = floating(4, 3, "nan").to(ratio.device)
    code = e4m3.nearest(ratio.clamp(E4M3_LEAST, e4m3.highest))
    return Params(e4m3.of_codes(code) * outer.squeeze(-1), torch.zeros_like(ratio), outer)


def tensor_scale(weight: Tensor, top: float) -> Tensor:
    """max|w| / top of a whole layer [rows, columns], the same for every row, [rows, 1, 1]; 1 for a layer of zeros."""
    scale = weight.abs().amax() / top
    return torch.where(scale == 0, 1.0, scale).expand(len(weight), 1, 1)


def four_over_six(groups: Tensor, levels: Levels, outer: Tensor | None) -> Params:
    """The largest magnitude becomes 6 or 4, whichever has the smaller squared error; 6 where they are equal.

    Source: Cook et al. 2025 (arXiv 2512.02010), section 3.
    """
    low, high = groups.amin(-1), groups.amax(-1)
    six = two_level(low, high, levels, outer)
    four = two_level(low, high, levels, outer, top=4.0)
    errors = [squared_error(groups, levels, params).sum(-1) for params in (six, four)]
    return Params(torch.where(errors[1] < errors[0], four.scale, six.scale), six.zero, outer)


def squared_error(groups: Tensor, levels: Levels, params: Params) -> Tensor:
    """(Ŵ − W)² of `groups` [rows, groups, size] rounded to the nearest levels."""
    return represent(codes(groups, levels, params), levels, params).sub_(groups).square_()


def codes(groups: Tensor, levels: Levels, params: Params) -> Tensor:
    """Codes [..., size] of the levels nearest to `groups` [..., size]."""
    return levels.nearest(_in_steps(groups, params))


def rounded(groups: Tensor, levels: Levels, params: Params) -> Tensor:
    """What the nearest codes represent, `represent` of `codes`, [..., size]."""
    return _of_levels(levels.rounded(_in_steps(groups, params)), params)


def _in_steps(groups: Tensor, params: Params) -> Tensor:
    step = torch.where(params.scale == 0, 1.0, params.scale).unsqueeze(-1)
    return (groups + params.zero.unsqueeze(-1)) / step


def represent(codes: Tensor, levels: Levels, params: Params) -> Tensor:
    """The weights [..., size] of `codes` [..., size]."""
    return _of_levels(levels.of_codes(codes), params)


def _of_levels(found: Tensor, params: Params) -> Tensor:
    return found.mul_(params.scale.unsqueeze(-1)).sub_(params.zero.unsqueeze(-1))


def stored(params: Params, kind: str, affine: bool) -> dict[str, Tensor]:
    """What a file would hold beside the codes, from which `params` can be computed again to the last bit.

    `kind` "float32" or "float16": scale [rows, groups], and minimum where `affine`.  "e8m0" and "e4m3": the scale as
    bit patterns, uint8, and the latter's tensor_scale [].  "multiple": scale (and minimum) as whole numbers, int8, and
    block_scale (block_minimum) [rows, blocks] in float16.
    """
    scale, zero, outer = params
    if kind == "e8m0":
        return {"scale": (torch.frexp(scale).exponent - 1 - E8M0_RANGE[0]).to(torch.uint8)}
    if kind == "e4m3":
        assert outer is not None
        return {
            "scale": floating(4, 3, "nan").to(scale.device).nearest(scale / outer[..., 0]),
            "tensor_scale": outer[0, 0, 0],
        }
    if kind == "multiple":
        assert outer is not None
        found = {}
        for name, values, block in zip(("scale", "minimum"), (scale, zero), outer.unbind(-1)):
            each = block.repeat_interleave(-(-scale.shape[1] // block.shape[1]), 1)[:, : scale.shape[1]]
            found[name] = torch.where(each == 0, 0, values / each).round().to(torch.int8)
            found[f"block_{name}"] = block.half()
        return found
    found = {"scale": scale, **({"minimum": -zero} if affine else {})}
    return {name: value.half() for name, value in found.items()} if kind == "float16" else found


class KQuant(NamedTuple):
    """A K-quant: blocks of 256 weights in groups, whose scales are small integer multiples of a float16 (llama.cpp).

    The searches are those that llama.cpp describes for use without an importance matrix: candidate steps around
    range/levels, each followed by the weighted least-squares scale for its codes.  Departures: sums run in another
    order; the last codes are always the nearest ones; Q3_K uses the search of Q6_K.
    """

    groups_per_block: int
    top: int
    """The largest integer that multiplies a block's scale; −top − 1 is the smallest where scales are signed."""
    first: float = 0.0
    """First candidate: (levels + first) steps to the range; then `count` more, each 0.1 further."""
    count: int = 0

    def affine(self, groups: Tensor, levels: Levels, outer: Tensor | None) -> Params:
        """Scale and minimum of every group, each a multiple of the block's (Q2_K, Q4_K, Q5_K)."""
        scale, minimum = _in_units_of_largest(groups, lambda w: self._affine_search(w, levels.highest))
        d, scale = self._multiples(scale)
        dmin, minimum = self._multiples(minimum)
        return Params(scale, minimum, torch.stack([d, dmin], -1))

    def symmetric(self, groups: Tensor, levels: Levels, outer: Tensor | None) -> Params:
        """A signed scale of every group, a multiple of the block's (Q3_K, Q6_K)."""
        (scale,) = _in_units_of_largest(groups, lambda w: (_symmetric_search(w, -levels.lowest),))
        d, scale = self._signed_multiples(scale)
        return Params(scale, torch.zeros_like(scale), d.unsqueeze(-1))

    def _affine_search(self, groups: Tensor, n: float) -> tuple[Tensor, Tensor]:
        """Scale and minimum ≥ 0 (subtracted) of every group, by weighted squared error with weights rms + |w|."""
        importance = groups.abs() + groups.square().mean(-1, keepdim=True).sqrt()
        low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True)
        span = torch.where(high > low, high - low, 1.0)
        total = importance.sum(-1, keepdim=True)
        total_x = (importance * groups).sum(-1, keepdim=True)
        best_scale, best_low = span / n, low
        best = _affine_error(groups, importance, best_scale, best_low, n)
        for step in range(self.count + 1):
            rounded = ((groups - low) * ((n + self.first + 0.1 * step) / span)).round_().clamp_(0, n)
            weighted = importance * rounded
            sum_l, sum_l2 = weighted.sum(-1, keepdim=True), (weighted * rounded).sum(-1, keepdim=True)
            sum_xl = (weighted * groups).sum(-1, keepdim=True)
            det = total * sum_l2 - sum_l * sum_l
            scale = (total * sum_xl - total_x * sum_l) / det
            offset = (sum_l2 * total_x - sum_l * sum_xl) / det
            scale = torch.where(offset > 0, sum_xl / sum_l2, scale)
            offset = offset.clamp(max=0)
            error = (importance * (rounded * scale + offset - groups).square_()).sum(-1, keepdim=True)
            better = (det > 0) & (error < best)
            best = torch.where(better, error, best)
            best_scale, best_low = torch.where(better, scale, best_scale), torch.where(better, offset, best_low)
        flat = (high <= low).squeeze(-1)
        return torch.where(flat, 0.0, best_scale.squeeze(-1)), -best_low.squeeze(-1)

    def _multiples(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Non-negative `values` [rows, groups] as integer multiples of a float16 per block."""
        blocks = self._blocks(values)
        largest = blocks.amax(-1)
        d = _half(largest / self.top)
        ratio = blocks * (self.top / torch.where(largest > 0, largest, 1.0)).unsqueeze(-1)
        multiple = ratio.round().clamp(0, self.top)
        return d, (multiple * d.unsqueeze(-1)).flatten(1)[:, : values.shape[1]]

    def _signed_multiples(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """`values` [rows, groups] as integer multiples of a float16 per block; the extreme one is −(top + 1) times."""
        blocks = self._blocks(values)
        extreme = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
        ratio = blocks * (-(self.top + 1) / torch.where(extreme == 0, 1.0, extreme))
        d = _half(extreme.squeeze(-1) / -(self.top + 1))
        multiple = ratio.round().clamp(-self.top - 1, self.top)
        return d, (multiple * d.unsqueeze(-1)).flatten(1)[:, : values.shape[1]]

    def _blocks(self, values: Tensor) -> Tensor:
        count = self.groups_per_block
        return functional.pad(values, (0, -values.shape[1] % count)).unflatten(1, (-1, count))


def _in_units_of_largest(groups: Tensor, search: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """`search` on groups whose largest magnitude is 1, so that no square overflows; its results scaled back."""
    largest = groups.abs().amax(-1)
    largest = torch.where(largest == 0, 1.0, largest)
    return tuple(found * largest for found in search(groups / largest.unsqueeze(-1)))


def _affine_error(groups: Tensor, importance: Tensor, scale: Tensor, low: Tensor, n: float) -> Tensor:
    rounded = ((groups - low) / scale).round_().clamp_(0, n)
    return (importance * (rounded * scale + low - groups).square_()).sum(-1, keepdim=True)


def _symmetric_search(groups: Tensor, n: float) -> Tensor:
    """The signed scale of every group for codes −n … n − 1, by squared error weighted with w²."""
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    safe = torch.where(extreme == 0, 1.0, extreme)
    importance = groups.square()
    best = torch.full_like(extreme, -1.0)
    best_scale = torch.zeros_like(extreme)
    for step in (0, *range(-9, 0), *range(1, 10)):
        rounded = (groups * (-(n + 0.1 * step) / safe)).round_().clamp_(-n, n - 1)
        sum_xl = (importance * groups * rounded).sum(-1, keepdim=True)
        sum_l2 = (importance * rounded.square()).sum(-1, keepdim=True)
        scale = sum_xl / torch.where(sum_l2 > 0, sum_l2, 1.0)
        better = scale * sum_xl > best
        best = torch.where(better, scale * sum_xl, best)
        best_scale = torch.where(better, scale, best_scale)
    return best_scale.squeeze(-1)


def _symmetric(scale: Tensor) -> Params:
    """A group of zeros, or one so small that its scale underflows, gets the scale 1 and only zeros."""
    return Params(torch.where(scale == 0, 1.0, scale), torch.zeros_like(scale))


def _half(values: Tensor) -> Tensor:
    """`values` rounded to float16.  Raises QuantizationError where they are too large for it."""
    rounded = values.half().float()
    if bool(rounded.isinf().any()):
        largest = float(values.abs().max())
        raise QuantizationError(f"a scale of {largest:.3g} is too large for the float16 that the format stores")
    return rounded
