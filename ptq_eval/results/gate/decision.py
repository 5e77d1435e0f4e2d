"""When a worsening counts, how likely it is to be seen, and how many windows that takes.

A cell of two grids has an estimated worsening w, with a standard error s over evaluation windows and a standard
deviation c of what chance does without any change of quality: another rounding as good as the one made, other
arithmetic.  It is worse if

    w > tolerance   and   p = P(t > w / √(s² + c²)) is at most `level` after Holm's procedure over all m cells,

t being Student's with Satterthwaite's degrees of freedom.  Holm's procedure holds whatever the dependence of the cells,
so a grid without any worsening is called worse with at most the probability `level`; the tolerance lowers it further.

Power is about the windows: given that the two models differ by W on the whole text (or on all texts of the kind that
the error covers), how often would a sample of so many windows lead to that decision?  With the critical value
k = max(tolerance, t(level/m) · √(s² + c²)), it is P(t > (k − W)/s).  That is exact for one worsened cell, and a lower
bound where others are worse too, because Holm's procedure then asks less of the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy import stats

from ptq_eval.results.gate.discordance import Discordance
from ptq_eval.results.over_rounding import holm
from ptq_eval.sampling import freedom

POWER = 0.8
"""Probability with which the smallest detectable worsening is seen."""
ASSURED, MULTIPLE = 0.95, 2
"""The windows needed are those that show a worsening of `MULTIPLE` tolerances with the probability `ASSURED`."""
MOST, MOST_DOCUMENTS = 10**9, 10**6
"""Windows, or documents, beyond this are no answer."""


class Outcome(StrEnum):
    """What is known of a cell."""

    SAME = "same"
    """The same loss in every window."""
    WORSE = "worse"
    """Worse by more than the tolerance, beyond chance."""
    BETTER = "better"
    """Better by more than the tolerance, beyond chance."""
    NOT_WORSE = "not_worse"
    """No worsening is shown."""
    UNTESTED = "untested"
    """The error is not known: a single window."""


class Shortage(StrEnum):
    """Why no number of windows would do."""

    CHANCE = "chance"
    """Chance alone moves the loss by so much."""


@dataclass(frozen=True)
class Evidence:
    """What the windows say of one cell, in the unit of the tolerance.

    worsening: how much worse the new result is, negative where it is better.  error: its standard error over windows,
    of `df` degrees of freedom.  chance: the standard deviation of what chance does to the difference of the two models,
    of `chance_df`.  share: the part of the text that the sample holds (0 where the error is about other texts).
    discordance: what changed, where windows are documents with an answer that is right or wrong; its exact test takes
    the place of Student's.
    """

    worsening: float
    error: float
    df: float
    windows: int
    chance: float = 0.0
    chance_df: float = math.inf
    share: float = 0.0
    discordance: Discordance | None = None

    @property
    def total(self) -> float:
        """The standard error that the test uses."""
        return math.hypot(self.error, self.chance)

    @property
    def total_df(self) -> float:
        """Degrees of freedom of `total`."""
        return _joint(self.error, self.df, self.chance, self.chance_df)

    @property
    def testable(self) -> bool:
        """Whether the error is known."""
        return math.isfinite(self.total) and self.df >= 1

    @property
    def measurable(self) -> bool:
        """Whether worsenings of a known size could be seen: both losses are finite, and the error is known."""
        return self.testable and math.isfinite(self.worsening)


def _joint(error: float, df: float, chance: float, chance_df: float) -> float:
    known = [(v * v, d) for v, d in ((error, df), (chance, chance_df)) if v > 0]
    if not known:
        return max(df, 1.0)
    if all(math.isinf(d) for _, d in known):
        return math.inf
    return max(freedom([v for v, _ in known], [d for _, d in known]), 1.0)


@dataclass(frozen=True)
class Rule:
    """What is called worse: beyond `tolerance`, and beyond chance at `level` over all of `cells` cells."""

    tolerance: float
    level: float
    cells: int

    @property
    def share(self) -> float:
        """The level of a single cell, where no other one is worse."""
        return self.level / max(self.cells, 1)

    def critical(self, evidence: Evidence) -> float:
        """The smallest estimate that is called worse, where no other cell is."""
        if evidence.total == 0:
            return self.tolerance
        quantile = float(stats.t.isf(self.share, evidence.total_df))
        return max(self.tolerance, quantile * evidence.total)

    def power(self, evidence: Evidence, worsening: float) -> float:
        """The probability that a true `worsening` is called one."""
        if evidence.discordance is not None:
            return evidence.discordance.power(worsening, self.tolerance, self.share)
        if not evidence.testable:
            return 0.0
        critical = self.critical(evidence)
        if evidence.error == 0:
            return float(worsening > critical)
        return float(stats.t.sf((critical - worsening) / evidence.error, evidence.df))

    def smallest(self, evidence: Evidence, power: float = POWER) -> float:
        """The smallest true worsening that is called one with probability `power`; infinite where none is."""
        if evidence.discordance is not None:
            return evidence.discordance.smallest(self.tolerance, self.share, power)
        if not evidence.measurable:
            return math.inf
        reach = evidence.error * float(stats.t.ppf(power, evidence.df)) if evidence.error else 0.0
        return self.critical(evidence) + reach

    def needed(self, evidence: Evidence) -> int | Shortage | None:
        """How many windows show a worsening of `MULTIPLE` tolerances with probability `ASSURED`.

        Shortage.CHANCE where no number would; None where no worsening of a known size could be seen.
        """
        if evidence.discordance is not None:
            asked = MULTIPLE * self.tolerance, self.tolerance, self.share, ASSURED
            return evidence.discordance.needed(*asked, MOST_DOCUMENTS)
        if not evidence.measurable:
            return None
        most = max(round(evidence.windows / evidence.share), evidence.windows) if evidence.share > 0 else MOST

        def enough(windows: int) -> bool:
            return self.smallest(_with(evidence, windows), ASSURED) <= MULTIPLE * self.tolerance

        if not enough(most):
            return Shortage.CHANCE
        low, high = 2, most
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle + 1, high)
        return low


def _with(evidence: Evidence, windows: int) -> Evidence:
    """The same cell, measured on another number of windows."""
    total = evidence.windows / evidence.share if evidence.share > 0 else math.inf
    rest, now = (max(1 - n / total, 0.0) for n in (windows, evidence.windows))
    variance = evidence.error**2 * evidence.windows / windows * (rest / now if now > 0 else 1.0)
    df = max(evidence.df * windows / evidence.windows, 1.0)
    share = evidence.share * windows / evidence.windows
    chances = evidence.chance, evidence.chance_df
    return Evidence(evidence.worsening, math.sqrt(variance), df, windows, *chances, share=min(share, 1.0))


def decide(evidence: Sequence[Evidence], tolerance: float, level: float) -> list[tuple[Outcome, float]]:
    """(outcome, p adjusted over all cells) of each cell; the p-value tests "not worse"."""
    worse, better = (holm(p_values(evidence, sign)) for sign in (1, -1))
    return [(_outcome(one, up, down, tolerance, level), float(up)) for one, up, down in zip(evidence, worse, better)]


def p_values(evidence: Sequence[Evidence], sign: int = 1) -> np.ndarray:
    """One-sided p-values of "not worse" ("not better" with `sign` −1); NaN for a cell that cannot be tested."""
    rows = [(sign * one.worsening, one.total, one.total_df) if one.testable else (np.nan,) * 3 for one in evidence]
    worsening, total, df = np.array(rows, float).reshape(len(rows), 3).T
    with np.errstate(divide="ignore", invalid="ignore"):
        found = stats.t.sf(worsening / total, df)
    certain = np.where(worsening > 0, 0.0, 1.0)  # equal in every window, or worse by the same in each
    found = np.where(np.isnan(worsening), np.nan, np.where(total == 0, certain, found))
    exact = {i: one.discordance.p(sign) for i, one in enumerate(evidence) if one.discordance is not None}
    found[list(exact)] = list(exact.values())
    return found


def _outcome(evidence: Evidence, worse: float, better: float, tolerance: float, level: float) -> Outcome:
    if evidence.worsening == 0 and evidence.error == 0:
        return Outcome.SAME
    if math.isnan(worse):
        return Outcome.UNTESTED
    if worse <= level and evidence.worsening > tolerance:
        return Outcome.WORSE
    if better <= level and evidence.worsening < -tolerance:
        return Outcome.BETTER
    return Outcome.NOT_WORSE
