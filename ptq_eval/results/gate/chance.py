"""What chance does to the difference of two quantized models, without any change of quality.

Two methods that are equally good round the same weights in two ways, and either may be lucky.  A record knows how far
luck moves its δ (`rounding_sd`, `numerics_sd`: the noise floor), so for two independent roundings the variances add.  A
change of a quantizer often leaves most roundings as they were, and then the two models share their luck.  How much they
share is not in the records, but the losses per window show it: windows react to the errors that the two models do not
have in common.  With V the variance between windows of δ of each, and of their difference,

    chance² = min(1, V_difference / (SHARED · (V_base + V_new))) · (rounding_base² + rounding_new²)  +  2 · numerics²

SHARED is about the least that independent roundings show: their δ resemble each other from window to window, because
passages that are hard to predict suffer under any rounding.  (`python -m benchmarks --only gate` prints the shares.)
The bound therefore holds for independent roundings, and is zero for equal ones.

Where a grid has several draws of the calibration windows, the difference between the models varies from draw to draw,
which shows chance itself: these variances are shrunk towards a common multiple of the bound, as are those of δ
(`results.draws`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ptq_eval.results.draws import shrunk

SHARED = 0.02
EXACT = 1e-9
"""Nats per token below which a difference, or its error, is one of sums of floats."""


@dataclass(frozen=True, eq=False)
class Luck:
    """What a cell's records say of chance: `roundings`, the standard deviations of δ of both models; `numerics`, that
    of each loss; `base` and `new` [draws, windows], δ per token of common windows.  NaN: not known."""

    roundings: tuple[float, float]
    numerics: float
    base: np.ndarray
    new: np.ndarray

    @property
    def known(self) -> bool:
        """Whether the chance of the roundings is known."""
        return all(math.isfinite(sd) for sd in self.roundings)

    @property
    def independent(self) -> float:
        """The standard deviation of the mean over draws for independent roundings, whatever these have in common."""
        roundings = sum(sd * sd for sd in self.roundings) if self.known else 0.0
        return math.sqrt(roundings / len(self.base))

    @property
    def share(self) -> float:
        """The share of independent roundings that these may be, 0 to 1."""
        own = float(np.var(self.base, axis=1).mean() + np.var(self.new, axis=1).mean())
        apart = float(np.var(self.new - self.base, axis=1).mean())
        return min(apart / (SHARED * own), 1.0) if own > 0 and apart > EXACT**2 else 0.0

    @property
    def variance(self) -> float:
        """The variance of the difference of one pair of models."""
        roundings = sum(sd * sd for sd in self.roundings) if self.known else 0.0
        numerics = self.numerics if math.isfinite(self.numerics) else 0.0
        return self.share * roundings + (2 * numerics**2 if self.share > 0 else 0.0)


def chances(cells: Sequence[Luck]) -> list[tuple[float, float]]:
    """(standard deviation of the mean over draws, degrees of freedom) of each cell."""
    found = [(math.sqrt(cell.variance / len(cell.base)), math.inf) for cell in cells]
    by_draws: dict[int, list[int]] = {}
    for place, cell in enumerate(cells):
        if len(cell.base) > 1:
            by_draws.setdefault(len(cell.base), []).append(place)
    for draws, places in by_draws.items():
        gaps = [(cells[i].new - cells[i].base).mean(axis=1) for i in places]
        variances = np.array([np.var(gap, ddof=1) for gap in gaps])
        moderated, df = shrunk(variances, draws - 1, np.array([cells[i].variance for i in places]))
        for place, variance, own in zip(places, moderated, df):
            found[place] = (math.sqrt(variance / draws), float(own))
    return found
