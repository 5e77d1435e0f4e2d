"""Which windows of a text are measured, and what a mean over them is worth: one survey design behind every error.

A design gives each window a stratum and a unit (a primary sampling unit of survey sampling): what was drawn, or what is
taken as drawn, independently of the rest of its stratum.

spread    The windows of the text in their order form strata of equal length, and two are drawn at random in each.  A
          unit is a window.  The error is that of the mean over *this text as a whole*, and shrinks to zero as the
          sample becomes the text (finite population correction).
crops     Windows at random places, drawn with replacement: one stratum, a unit is a window.
first     The first windows, or all of them.  Neighbours resemble each other, so a unit is a document, or several short
          ones in a row: the error is that of the mean over *other texts of this kind*.  Without marks of documents,
          or with too few documents, units are stretches of √n neighbouring windows, and the error is that of other
          passages of the same documents only.

Errors are computed for a ratio of totals, linearised, with the variance between the units of a stratum; degrees of
freedom are units minus strata (Särndal, Swensson and Wretman 1992, sections 4.5 and 5.6; Wolter 2007, section 6).
Bootstrap weights redraw the units within strata, rescaled (Rao and Wu 1988), which gives the same variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ptq_eval.records import Sample

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

SIGNIFICANT = 2.0
"""How many standard errors make a difference significant, wherever this package judges one."""
MIN_DOCUMENTS = 5
"""With fewer independent documents than this, the variance between them is not estimated."""


class Covers(StrEnum):
    """What a standard error over windows is about."""

    TEXT = "text"
    """The mean over this text as a whole."""
    TEXTS = "texts"
    """The mean over other documents of this kind."""
    PASSAGES = "passages"
    """The mean over other passages of the same documents."""


def spread(total: int, count: int, seed: int) -> np.ndarray:
    """Places, ascending, of `count` of `total` windows in order: two in each of count // 2 strata of equal length.

    The last stratum has three where `count` is odd.  Lengths differ by one window at most, by chance, so that each
    window of the text is drawn with the same probability.
    """
    rng = np.random.default_rng(seed)
    sizes = np.full(max(count // 2, 1), min(count, 2))
    sizes[-1] += count - sizes.sum()
    ends = np.floor(np.cumsum(sizes) * total / count + rng.random()).astype(int)
    ends[-1] = total
    starts = np.concatenate([[0], ends[:-1]])
    drawn = [rng.choice(end - start, size, replace=False) + start for start, end, size in zip(starts, ends, sizes)]
    return np.sort(np.concatenate(drawn))


@dataclass(frozen=True, eq=False)
class Design:
    """The stratum and the unit of each window, [n] integers from 0; a unit is in one stratum.

    `share` is the share of the population that is in the sample, where the error is about that population.
    """

    strata: np.ndarray
    units: np.ndarray
    share: float = 0.0
    covers: Covers = Covers.TEXT

    @cached_property
    def stratum_of(self) -> np.ndarray:
        """The stratum of each unit."""
        found = np.empty(self.units.max() + 1, int)
        found[self.units] = self.strata
        return found

    @property
    def n_units(self) -> int:
        """The number of units."""
        return len(self.stratum_of)

    @property
    def freedom(self) -> int:
        """Degrees of freedom of a standard error: units minus strata."""
        return self.n_units - len(np.unique(self.stratum_of))

    def at(self, windows: ArrayLike) -> Design:
        """The design of some of the windows, drawn at random from these.

        Where a stratum is left with one unit, all units count as one stratum: what was between strata is then part of
        the error, as it has to be for a random subset.
        """
        places = np.asarray(windows, int)
        strata, units = self.strata[places], np.unique(self.units[places], return_inverse=True)[1]
        some = Design(strata, units, self.share * len(places) / len(self.units), self.covers)
        counts = np.bincount(some.stratum_of)
        return (
            some
            if (counts[counts > 0] > 1).all()
            else Design(np.zeros(len(places), int), units, some.share, self.covers)
        )

    def deviations(self, n_boot: int, seed: int) -> np.ndarray:
        """Bootstrap weights of the windows minus one, [n_boot, n]; the same for the same design and seed."""
        rng = np.random.default_rng([seed, len(self.units)])
        strata, sizes = np.unique(self.stratum_of, return_counts=True)
        found = np.zeros((n_boot, self.n_units))
        for size in np.unique(sizes[sizes > 1]):
            own = strata[sizes == size]
            draws = rng.multinomial(size, np.full(size, 1 / size), size=(n_boot, len(own)))
            draws = draws.reshape(n_boot, size * len(own))
            columns = np.concatenate([np.flatnonzero(self.stratum_of == stratum) for stratum in own])
            found[:, columns] = math.sqrt((1 - self.share) * size / (size - 1)) * (draws - 1)
        return found[:, self.units]


def independent(n: int) -> Design:
    """Windows drawn at random, with replacement, from one population."""
    return Design(np.zeros(n, int), np.arange(n))


def design_of(sample: Sample | None, n: int) -> Design:
    """The design of `n` windows; without a `sample` (records of earlier versions), the first ones of a text."""
    sample = sample or Sample()
    if sample.selection == "crops":
        return independent(n)
    if sample.selection == "spread":
        share = n / sample.population if sample.population else 0.0
        return Design(np.minimum(np.arange(n) // 2, max(n // 2 - 1, 0)), np.arange(n), share)
    units = _documents(sample.documents) if len(sample.documents) == n else np.zeros(n, int)
    covers = Covers.TEXTS
    if units.max() + 1 < MIN_DOCUMENTS:
        stretches = max(min(n, 2), n // math.ceil(math.sqrt(n)))
        units, covers = np.arange(n) * stretches // n, Covers.PASSAGES
    return Design(np.zeros(n, int), units, covers=covers)


def _documents(documents: ArrayLike) -> np.ndarray:
    """Units [n] of whole documents: those shorter than n^(1/3) windows, the usual length of a block in a bootstrap of
    dependent data, are joined with the next, because neighbouring short ones may be parts of one text."""
    found = np.asarray(documents)
    least = math.ceil(round(len(found) ** (1 / 3), 9))
    starts = np.flatnonzero(np.concatenate([[True], found[1:] != found[:-1]]))
    kept = [0]
    for start in starts[1:]:
        if start - kept[-1] >= least:
            kept.append(int(start))
    if len(kept) > 1 and len(found) - kept[-1] < least:
        kept.pop()
    return np.searchsorted(kept, np.arange(len(found)), side="right") - 1


def mean_and_error(values: ArrayLike, weights: ArrayLike, design: Design | None = None) -> tuple[float, float]:
    """Σ values / Σ weights over windows [n], and its standard error under the design (None: independent windows).

    NaN for an error that one unit cannot show.
    """
    v, w = np.asarray(values, float), np.asarray(weights, float)
    mean = v.sum() / w.sum()
    return float(mean), float(np.sqrt(_variance((v - mean * w) / w.sum(), design or independent(len(v)))))


def standard_error(values: ArrayLike, design: Design | None = None) -> float:
    """The standard error of the mean of `values` [n], one per window of the same number of tokens.

    For a paired difference of two losses, give the differences: `standard_error(after - before, design)`.
    """
    return mean_and_error(values, np.ones(len(np.asarray(values))), design)[1]


def errors_needed(freedom: ArrayLike) -> np.ndarray:
    """How many standard errors with so many degrees of freedom are as rare by chance, by Student's t, as two of a
    normal distribution; two where the degrees of freedom are not known."""
    from scipy import stats

    known = np.asarray(freedom, float)
    found = stats.t.isf(stats.norm.sf(SIGNIFICANT), np.where(known >= 1, known, 1.0))
    return np.where(known >= 1, found, SIGNIFICANT)


def freedom(variances: Sequence[float], degrees: Sequence[float]) -> float:
    """Degrees of freedom of a sum of independent estimates of variances (Satterthwaite 1946)."""
    total = math.fsum(variances)
    parts = math.fsum(v * v / d for v, d in zip(variances, degrees) if v > 0 and d > 0)
    return total * total / parts if parts > 0 else float(max(degrees))


def effective(values: ArrayLike, weights: ArrayLike, design: Design | None) -> float:
    """The effective sample size: how many independent windows would give the same standard error."""
    error, simple = mean_and_error(values, weights, design)[1], mean_and_error(values, weights)[1]
    n = len(np.asarray(values))
    return n * (simple / error) ** 2 if error > 0 else math.nan


def _variance(residuals: np.ndarray, design: Design) -> float:
    """The variance of the total of `residuals` [n]."""
    if design.freedom < 1:
        return math.nan
    stratum = design.stratum_of
    totals, sizes = np.bincount(design.units, residuals), np.bincount(stratum)
    gaps = totals - (np.bincount(stratum, totals) / np.maximum(sizes, 1))[stratum]
    several = sizes > 1
    within = np.bincount(stratum, gaps**2)[several] * sizes[several] / (sizes[several] - 1)
    return float((1 - design.share) * within.sum())
