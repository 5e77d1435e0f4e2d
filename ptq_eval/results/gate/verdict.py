"""What a comparison of two results comes to: every cell judged, and one verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from ptq_eval.results.gate.decision import Outcome, Rule, Shortage, decide
from ptq_eval.results.gate.pairs import About, Mismatch, Missing, Pair, Paired


class Verdict(StrEnum):
    """What follows from all cells.  Where several apply, the first of them does."""

    WORSE = "worse"
    NOT_COMPARABLE = "not_comparable"
    MISSING = "missing"
    NOT_WORSE = "not_worse"

    @property
    def exit_code(self) -> int:
        """0 to let a change pass, else 1, 2 or 3."""
        return {Verdict.WORSE: 1, Verdict.NOT_COMPARABLE: 2, Verdict.MISSING: 3}.get(self, 0)


@dataclass(frozen=True)
class Judged:
    """A cell with its outcome, its p-value adjusted over all cells, the smallest worsening that its windows could have
    seen (infinite: none), and how many windows would show twice the tolerance.

    Where nothing changed, these two are about two models whose roundings are independent.  luck: the cell is worse, but
    another rounding of the same quality may explain it.
    """

    pair: Pair
    outcome: Outcome
    adjusted_p: float
    smallest: float
    needed: int | Shortage | None
    luck: bool = False

    @property
    def enough(self) -> bool:
        """Whether the windows suffice to show twice the tolerance."""
        return isinstance(self.needed, int) and self.needed <= self.pair.evidence.windows


@dataclass(frozen=True)
class Origin:
    """Where a result is from: its name, the version of this program, those of its quantizers, records that cannot be
    read, whether it has losses per window."""

    name: str
    version: str = ""
    quantizers: Mapping[str, str] | None = None
    damaged: tuple[tuple[str, int], ...] = ()
    windows: bool = True


@dataclass(frozen=True)
class Comparison:
    """Two results side by side; `documents`: they are of lm-eval, else losses per window.

    skipped: metrics of lm-eval without a value per document.
    """

    base: Origin
    new: Origin
    rule: Rule
    judge: str
    cells: tuple[Judged, ...]
    mismatches: tuple[Mismatch, ...] = ()
    missing: tuple[Missing, ...] = ()
    added: tuple[About, ...] = ()
    documents: bool = False
    skipped: tuple[str, ...] = ()

    @property
    def worse(self) -> list[Judged]:
        """The cells that are worse, the largest worsening first."""
        return sorted(self.of(Outcome.WORSE), key=lambda cell: -cell.pair.evidence.worsening)

    def of(self, outcome: Outcome) -> list[Judged]:
        """The cells of one outcome."""
        return [cell for cell in self.cells if cell.outcome == outcome]

    @property
    def verdict(self) -> Verdict:
        """The verdict over all cells."""
        if self.of(Outcome.WORSE):
            return Verdict.WORSE
        if self.mismatches:
            return Verdict.NOT_COMPARABLE
        return Verdict.MISSING if self.missing or not self.cells else Verdict.NOT_WORSE


def judge(found: Paired, tolerance: float, level: float) -> tuple[Rule, tuple[Judged, ...]]:
    """The rule over all cells, and every cell judged by it."""
    rule = Rule(tolerance, level, len(found.pairs))
    evidence = [pair.evidence for pair in found.pairs]
    decided = decide(evidence, tolerance, level)
    shown = [
        pair.changed if outcome == Outcome.SAME else pair.evidence for pair, (outcome, _) in zip(found.pairs, decided)
    ]
    of_methods = decide([replace(pair.evidence, chance=pair.luck) for pair in found.pairs], tolerance, level)
    return rule, tuple(
        Judged(pair, outcome, p, rule.smallest(one), rule.needed(one), Outcome.WORSE == outcome != other)
        for pair, one, (outcome, p), (other, _) in zip(found.pairs, shown, decided, of_methods)
    )
