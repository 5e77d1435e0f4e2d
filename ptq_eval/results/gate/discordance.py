"""Answers that are right or wrong, in pairs: how many became wrong, how many became right, and what that shows.

Under "no worse" each document whose answer changed became wrong with probability one half at most, so the p-value is
that of a binomial distribution: McNemar's test (1947), exact and one-sided.  Power is exact too: the changes that go
both ways keep their rates, a worsening W is a further share W of the documents whose answers become wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Discordance:
    """Of `documents`, how many answers became wrong and how many became right."""

    documents: int
    worse: int
    better: int

    def p(self, sign: int = 1) -> float:
        """The p-value of "no worse" (of "no better" with `sign` −1)."""
        against = self.worse if sign > 0 else self.better
        return float(stats.binom.sf(against - 1, self.worse + self.better, 0.5))

    def power(self, worsening: float, tolerance: float, level: float, documents: int = 0) -> float:
        """The probability that a true worsening (a share) is called one at `level`, with so many documents."""
        n = documents or self.documents
        both = min(self.worse, self.better) / self.documents
        changed = min(2 * both + worsening, 1.0)
        if worsening <= 0 or n < 1:
            return 0.0
        reach = 9 * math.sqrt(n * changed) + 9
        counts = np.arange(max(math.floor(n * changed - reach), 0), min(math.ceil(n * changed + reach), n) + 1)
        by_chance = stats.binom.isf(level, counts, 0.5) + 1
        by_size = np.floor((counts + tolerance * n) / 2 + 1e-9) + 1
        caught = stats.binom.sf(np.maximum(by_chance, by_size) - 1, counts, min((both + worsening) / changed, 1.0))
        return float((stats.binom.pmf(counts, n, changed) * caught).sum())

    def smallest(self, tolerance: float, level: float, power: float) -> float:
        """The smallest worsening that is called one with probability `power`; infinite where none is."""
        if self.power(1.0, tolerance, level) < power:
            return math.inf
        return _first(lambda share: self.power(share, tolerance, level) >= power, 0.0, 1.0, 1e-4)

    def needed(self, worsening: float, tolerance: float, level: float, power: float, most: int) -> int | None:
        """How many documents show a worsening with probability `power`; None where `most` would not."""

        def enough(documents: int) -> bool:
            return self.power(worsening, tolerance, level, documents) >= power

        high = 16
        while not enough(high):
            high *= 2
            if high > most or worsening <= 0:
                return None
        low = high // 2
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle + 1, high)
        return low


def _first(holds: Callable[[float], bool], low: float, high: float, width: float) -> float:
    while high - low > width:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
