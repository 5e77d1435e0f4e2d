"""How well statements did: coverage, width and score, by method and bit-width."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ptq_eval.laws.forecast.backtest import Ahead, Statement, What
from ptq_eval.laws.forecast.baselines import FORECAST


@dataclass(frozen=True)
class Score:
    """The statements of one method about one thing; bits and ahead are None where all are taken together.

    n counts statements (of D_crit: decisive cases) whose learning rate was as assumed, `made` the share of these in
    which a statement is made, `refuted` the share that was refuted, `half` the share inside the interval of level
    `backtest.INNER`, NaN where there are none; `width` and `score` are means over all that were as assumed, in the
    units of `backtest`.  `otherwise` counts statements whose learning rate was not.
    """

    method: str
    what: What
    bits: float | None
    ahead: Ahead | None
    n: int
    made: float
    refuted: float
    width: float
    score: float
    half: float
    otherwise: int

    @property
    def coverage(self) -> float:
        """The share that was not refuted."""
        return 1 - self.refuted

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {**asdict(self), "coverage": self.coverage}


def scores(statements: Sequence[Statement]) -> list[Score]:
    """Scores by method, and by bit-width and by distance within each."""
    found = []
    for what in What:
        own = [s for s in statements if s.what is what]
        for bits in (None, *sorted({s.bits for s in own})):
            for ahead in (None, *(a for a in Ahead if any(s.ahead is a for s in own) and a is not Ahead.OPEN)):
                for method in dict.fromkeys(s.method for s in own):
                    rows = [s for s in own if s.method == method]
                    rows = [s for s in rows if bits in (None, s.bits) and ahead in (None, s.ahead)]
                    if rows:
                        found.append(_score(rows, bits, ahead))
    return found


def _score(rows: Sequence[Statement], bits: float | None, ahead: Ahead | None) -> Score:
    kept = [s for s in rows if s.as_assumed]
    decisive = [s for s in kept if s.decisive]

    def mean(own: Sequence[Statement], name: str) -> float:
        return float(np.mean([getattr(s, name) for s in own])) if own else math.nan

    made, refuted, half = (mean(decisive, name) for name in ("made", "refuted", "half"))
    width, score = mean(kept, "width"), mean(kept, "score")
    otherwise = len(rows) - len(kept)
    return Score(rows[0].method, rows[0].what, bits, ahead, len(decisive), made, refuted, width, score, half, otherwise)


def total(found: Iterable[Score], what: What, bits: float | None = None, method: str = FORECAST) -> Score | None:
    """The score of a method over all distances; None where it stated nothing."""
    return next((s for s in found if (s.method, s.what, s.bits, s.ahead) == (method, what, bits, None)), None)


def best_baseline(found: Iterable[Score], what: What, bits: float | None = None) -> Score | None:
    """The baseline with the lowest mean score over all distances; None where there is none."""
    own = [s for s in found if (s.what, s.bits, s.ahead) == (what, bits, None) and s.method != FORECAST]
    return min(own, key=lambda s: s.score, default=None)
