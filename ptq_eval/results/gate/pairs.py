"""Cells of two results, paired by checkpoint, quantizer with its options, and scheme.

The version of this program and of a quantizer may differ: that is what is compared.  What a loss is measured *with* may
not: weights, evaluation windows, data type, kind of device, calibration.  A cell that only the old result has is
missing; one that only the new one has is new, and no reason for alarm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from ptq_eval.results.gate.chance import chances
from ptq_eval.results.gate.evidence import Compared, from_records, from_rows, in_common
from ptq_eval.results.gate.sides import VARIANT, Cell, Identity, Side
from ptq_eval.results.points import number

_NAMES = ("run", "step", "tokens", "quantizer", "options", "bits", "format", "group_size", "symmetric", *VARIANT)
About = Mapping[str, Any]
"""The columns that name a cell."""


class Absence(StrEnum):
    """Why a cell of the old result is missing in the new one."""

    NOT_THERE = "not_there"
    FAILED = "failed"
    EXCLUDED = "excluded"


class Condition(StrEnum):
    """What a loss is measured with; the first that differs is named."""

    WEIGHTS = "weights_sha"
    PROTOCOL = "protocol"
    DTYPE = "dtype"
    DEVICE = "device"
    CALIBRATION = "calibration"
    CALIBRATION_TEXT = "calib_text"
    CALIBRATION_WINDOWS = "calib_windows"
    CALIBRATION_LENGTH = "calib_length"
    CORPUS = "corpus"
    HEAD = "include_head"
    EMBEDDING = "include_embedding"
    CALIBRATION_DRAW = "calib_seed"
    COMMON_WINDOWS = "windows"
    # of results of lm-eval
    DOCUMENTS = "documents"
    PROMPT = "prompt_hash"
    TARGET = "target_hash"
    VERSION = "task_version"


_COLUMNS = tuple(Condition)[: tuple(Condition).index(Condition.CORPUS)]


@dataclass(frozen=True)
class Missing:
    """A cell that only the old result has; `message` says why it failed or was excluded."""

    about: About
    why: Absence
    message: str = ""


@dataclass(frozen=True)
class Mismatch:
    """A condition that differs between the two results of a cell, so that they are not comparable."""

    about: About
    what: Condition
    base: str
    new: str


@dataclass(frozen=True, kw_only=True)
class Pair(Compared):
    """A cell of both results, its evidence with chance, and what a reader should know about it.

    drift: how much the loss in full precision rose.  partial: layers left in full precision by (base, new).  paired:
    window by window.  luck: the standard deviation of what chance does to the difference, counted or not.
    """

    about: About
    drift: float = 0.0
    partial: tuple[int, int] = (0, 0)
    paired: bool = True
    luck: float = 0.0
    higher_is_better: bool = False


@dataclass
class Paired:
    """All cells of two results."""

    pairs: list[Pair] = field(default_factory=list)
    mismatches: list[Mismatch] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    added: list[About] = field(default_factory=list)


def pair(base: Side, new: Side, chance: bool = True) -> Paired:
    """The cells of two results; `chance`: whether the luck of rounding is part of the evidence."""
    mine, others = _by_identity(base.cells), _by_identity(new.cells)
    found, compared = Paired(), list[tuple[Cell, Cell, Compared]]()
    for old, other in _candidates(mine, others):
        if other is None or not other.measured:
            found.missing.append(_missing(old, other, new))
        elif different := next(_differences(base, new, old, other), None):
            found.mismatches.append(Mismatch(about(old.row), *different))
        elif one := _compared(old, other):
            compared.append((old, other, one))
        else:
            a, b = (f"{len(cell.draws[0].nll)} windows" for cell in (old, other))
            found.mismatches.append(Mismatch(about(old.row), Condition.COMMON_WINDOWS, a, b))
    lucks = [one.roundings for *_, one in compared if one.roundings is not None]
    sds = iter(chances(lucks))
    for old, other, one in compared:
        sd = next(sds) if one.roundings is not None else (one.evidence.chance, math.inf)
        found.pairs.append(_pair(old, other, one, chance, *sd))
    fresh = [cell for key, cells in others.items() if key not in mine for cell in cells.values() if cell.measured]
    found.added += [about(cell.row) for cell in fresh]
    return found


def about(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that name a cell."""
    return {name: row.get(name) for name in _NAMES}


def _by_identity(cells: Iterable[Cell]) -> dict[Identity, dict[Identity, Cell]]:
    found: dict[Identity, dict[Identity, Cell]] = {}
    for cell in cells:
        found.setdefault(cell.identity, {})[cell.variant] = cell
    return found


def _candidates(
    mine: Mapping[Identity, Mapping[Identity, Cell]], others: Mapping[Identity, Mapping[Identity, Cell]]
) -> Iterator[tuple[Cell, Cell | None]]:
    """Each measured cell of the old result with the new one's, calibrated equally if there is one."""
    for identity, olds in mine.items():
        news = others.get(identity, {})
        elsewhere = next(iter(news.values()), None) if not news.keys() & olds.keys() else None
        for variant, old in olds.items():
            if old.measured:
                yield old, news.get(variant, elsewhere)


def _compared(old: Cell, other: Cell) -> Compared | None:
    records = old.draws and other.draws and old.full is not None and other.full is not None
    return from_records(old, other) if records else from_rows(old, other)


def _missing(old: Cell, other: Cell | None, new: Side) -> Missing:
    place = (old.row["run"], old.row["step"])
    if other is not None:
        return Missing(about(old.row), Absence.FAILED, other.row["message"])
    if place in new.excluded:
        return Missing(about(old.row), Absence.EXCLUDED, new.excluded[place])
    return Missing(about(old.row), Absence.NOT_THERE)


def _pair(old: Cell, other: Cell, one: Compared, chance: bool, sd: float, df: float) -> Pair:
    fulls = [cell.full.loss if cell.full is not None else number(cell.row.get("loss_fp")) for cell in (old, other)]
    skipped = [number(cell.row.get("layers_skipped")) for cell in (old, other)]
    with_chance: dict[str, Any] = {
        **vars(one),
        "evidence": replace(one.evidence, chance=sd if chance else 0.0, chance_df=df),
        "changed": one.changed if chance else replace(one.changed, chance=0.0),
    }
    return Pair(
        **with_chance,
        about=about(old.row),
        drift=fulls[1] - fulls[0] if all(map(math.isfinite, fulls)) else 0.0,
        partial=tuple(int(n) if math.isfinite(n) else 0 for n in skipped),  # type: ignore[arg-type]
        paired=one.roundings is not None or bool(old.draws and other.draws),
        luck=sd,
    )


def _differences(base: Side, new: Side, old: Cell, other: Cell) -> Iterator[tuple[Condition, str, str]]:
    """(what, in the old result, in the new one) of everything that makes two results incomparable."""
    for name in _COLUMNS:
        if (a := old.row.get(name)) != (b := other.row.get(name)):
            yield name, _short(name, a), _short(name, b)
    corpora = base.corpus(old), new.corpus(other)
    if None not in corpora and corpora[0] != corpora[1]:
        yield Condition.CORPUS, _short(Condition.CORPUS, corpora[0]), _short(Condition.CORPUS, corpora[1])
    if not (old.draws and other.draws):
        if (a := old.row["calib_seed"]) != (b := other.row["calib_seed"]):
            yield Condition.CALIBRATION_DRAW, a, b
        return
    trials = old.draws[0].trial, other.draws[0].trial
    for name in (Condition.HEAD, Condition.EMBEDDING):
        a, b = (bool(getattr(trial, name)) for trial in trials)
        if a != b:
            yield name, _treated(a), _treated(b)
    if not in_common(old, other):
        a, b = (_short(Condition.CORPUS, trial.calibration_corpus) for trial in trials)
        yield Condition.CALIBRATION_DRAW, a, b


def _treated(quantized: bool) -> str:
    return "quantized" if quantized else "in full precision"


def _short(name: Condition, value: Any) -> str:
    if name in (Condition.WEIGHTS, Condition.CORPUS):
        return f"digest {str(value)[:12]}" if value else "none"
    return "unknown" if value in (None, "") else str(value)
