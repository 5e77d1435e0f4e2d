"""The bound δ ≤ C·4^−b: its constant, measured, and the bit-widths where it holds.

Second order with noise of variance Δ²/12 and Δ = range/(2^b − 1) predicts δ = K/(2^b − 1)² with one K for all widths;
hence δ ≤ C·4^−b for every width from b₀ on, where C = K·4^b₀/(2^b₀ − 1)² includes the grid's own factor.  K is
measured: the finest width gives the first estimate, and coarser ones are added, weighted by their errors, as long as
their own K does not exceed it by more than two standard errors.  The first that does ends the range: there the second
order is not enough, and the table says by how much.  A width whose damage is *smaller* than the bound, because the loss
saturates, satisfies it.

Numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ptq_eval.sampling import SIGNIFICANT


@dataclass(frozen=True)
class Bound:
    """`constant` C ± `error` in nats per token, valid at the tested `widths`, from `lowest` on.

    `excess` {bits: measured damage / C·4^−bits} covers every width, including those where the bound fails.  `constant`
    is NaN and `widths` empty where no damage is significant.
    """

    constant: float
    error: float
    lowest: int | None
    widths: tuple[int, ...]
    excess: dict[int, float]

    def at(self, bits: float) -> float:
        """C·4^−bits."""
        return self.constant * 4.0**-bits


def grid_factor(bits: float) -> float:
    """4^b/(2^b − 1)²: the squared step of a grid of 2^b points, relative to 2^b steps in the same range."""
    return 4.0**bits / (2.0**bits - 1) ** 2


def bound(bits: Sequence[int], damage: Sequence[float], error: Sequence[float]) -> Bound:
    """The bound from one damage for each bit-width, with its standard errors, both in nats per token.

    `error` should include all that moves a damage away from its expectation, such as the spread of the slope.  Raises
    ValueError for different lengths, repeated widths, or errors that are negative or not finite.
    """
    widths, values, errors = (np.asarray(column, float) for column in (bits, damage, error))
    if not len(widths) == len(values) == len(errors) or len(set(widths)) != len(widths):
        raise ValueError(f"one damage and one error for each of several different bit-widths, got {list(bits)}")
    if not (np.isfinite(errors).all() and (errors >= 0).all()):
        raise ValueError(f"standard errors must be finite and not negative, got {list(error)}")
    scale = (2**widths - 1) ** 2
    constants = values * scale
    scatter = errors * scale
    taken = _range(widths, constants, scatter)
    if not taken:
        return Bound(math.nan, math.nan, None, (), {})
    pooled, deviation = _pooled(constants[taken], scatter[taken])
    lowest = int(widths[taken].min())
    factor = grid_factor(lowest)
    excess = {int(b): float(v * 4.0**b / (pooled * factor)) for b, v in zip(widths, values)}
    inside = tuple(sorted(int(b) for b in widths[taken]))
    return Bound(pooled * factor, deviation * factor, lowest, inside, dict(sorted(excess.items())))


def _range(widths: np.ndarray, constants: np.ndarray, scatter: np.ndarray) -> list[int]:
    """Indices of the widths that one constant bounds, from the finest down; none if no constant is significant."""
    taken: list[int] = []
    for place in np.argsort(-widths):
        if not math.isfinite(constants[place]):
            break
        if taken:
            pooled, deviation = _pooled(constants[taken], scatter[taken])
            known = pooled > SIGNIFICANT * deviation
            if known and constants[place] - pooled > SIGNIFICANT * math.hypot(deviation, scatter[place]):
                break
        taken.append(int(place))
    if not taken:
        return []
    pooled, deviation = _pooled(constants[taken], scatter[taken])
    return taken if pooled > SIGNIFICANT * deviation else []


def _pooled(constants: np.ndarray, scatter: np.ndarray) -> tuple[float, float]:
    """Mean weighted by inverse variance, and its standard error."""
    weights = 1 / np.maximum(scatter, np.finfo(float).tiny ** 0.25) ** 2
    return float((weights * constants).sum() / weights.sum()), float(weights.sum() ** -0.5)
