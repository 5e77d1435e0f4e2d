"""The constants that a plan is made from: where they come from, how sure they are, and where they were measured.

Three origins.  A *preset* is a published table of constants: no uncertainty is known, so its answers have no
interval.  *Records* of an output folder are fitted again (`plan_fits`), because `fit.json` holds intervals but not the
bootstrap's replicates, and an answer combines constants of two fits whose errors go together: it is evaluated on
every replicate.  *Fits* are `FitResult` objects, or the entries of a `fit.json`, which have no replicates.

Constants are arrays [1 + replicates], the estimate first, so that one formula gives an answer and its interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ptq_eval.laws import bootstrap, critical
from ptq_eval.laws.base import Estimate, FitResult
from ptq_eval.laws.planning.formulas import Formulas
from ptq_eval.laws.presets import Preset

Ranges = Mapping[str, tuple[float, float]]

RANGES: Mapping[str, Ranges] = {
    "KUMAR_2024": {"N": (30e6, 220e6), "D": (1.5e9, 26e9), "bits": (3, 6)},
    "HOFFMANN_2022": {"N": (70e6, 16e9), "D": (5e9, 500e9)},
    "EPOCH_2024": {"N": (57e6, 16.2e9), "D": (245e6, 318e9)},
}
"""Models, data and serving bits behind published constants, by the beginning of the preset's name."""

DEFAULT_BITS = (3.0, 6.0)
"""Ends of the serving precisions that are looked at where none was fitted."""
USED = ("kumar_ptq", "kumar_ptq_ratio", "ouyang", "chinchilla", "chinchilla_d", "n_eff", "unified", "unified_delta")
"""The laws whose constants a plan can use, by name."""


@dataclass(frozen=True)
class Source:
    """Constants [1 + replicates] by name, with the ranges of N, D and bits that they were fitted in.

    `bits` are the serving precisions to look at where none is asked for.  `refused` says of "damage" or "loss" why the
    fit does not determine it, `doubts` what else to beware of.  `one_size` is the N for which E holds, where E contains
    A/N^alpha.
    """

    name: str
    note: str
    constants: Mapping[str, np.ndarray]
    ranges: Ranges
    bits: tuple[float, ...]
    laws: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()
    one_size: float | None = None
    level: float = math.nan
    stretch: float = 1.0
    uncertainty: str = ""
    fits: Mapping[str, FitResult] = field(default_factory=dict)

    def formulas(self, axes: int = 0) -> Formulas:
        """The formulas of these constants, whose results are [1 + replicates, …] with `axes` further axes."""
        shape = (-1, *[1] * axes)
        return Formulas({name: values.reshape(shape) for name, values in self.constants.items()}, self.one_size)

    def estimate(self, values: Any, *, log: bool = True) -> Estimate:
        """`values` [1 + replicates] as a value with its interval; infinite replicates open an end."""
        values = np.broadcast_to(np.asarray(values, float), np.shape(values) or (1,))
        value, draws = float(values[0]), values[1:]
        if not len(draws) or np.isnan(draws).any() or not math.isfinite(value):
            return Estimate(value)
        if np.allclose(draws, value, rtol=1e-9, atol=0):  # given, not estimated
            return Estimate(value)
        on_log = log and value > 0 and bool(np.all(draws > 0))
        low, high = bootstrap.interval(value, draws, factor=self.stretch, level=self.level, log=on_log)
        return Estimate(value, low, high)

    def critical_tokens(self, N: float, bits: float) -> tuple[Estimate, str]:
        """D_crit with its interval; NaN and the reason where the fits behind the constants do not determine it."""
        if {"damage", "loss"} <= set(self.fits):
            predicted, why_not = critical.predict(self.fits["damage"], self.fits["loss"], N, bits)
            return predicted or Estimate(math.nan), why_not
        return self.estimate(self.formulas().critical_tokens(N, bits)), ""

    def beyond(self, **at: float | None) -> dict[str, float]:
        """For each of N, D and bits that lies outside the fitted range, by which factor."""
        found = {}
        for name, value in at.items():
            low, high = self.ranges.get(name, (0.0, math.inf))
            if value is not None and 0 < value < math.inf and (factor := max(value / high, low / value)) > 1.005:
                found[name] = factor
        return found


def whole_bits(ranges: Ranges) -> tuple[float, ...]:
    """The whole numbers of bits within a fitted range."""
    low, high = ranges.get("bits", DEFAULT_BITS)
    return tuple(float(bits) for bits in range(math.ceil(low), math.floor(high) + 1))


def from_preset(preset: Preset) -> Source:
    """Published constants, and the paper's ranges where they are known."""
    known = [ranges for name, ranges in RANGES.items() if preset.name.startswith(name)]
    return Source(
        name=preset.name,
        note=f"{preset.source}. {preset.note}",
        constants={name: np.array([float(value)]) for name, value in preset.constants.items()},
        ranges=known[0] if known else {},
        bits=whole_bits(known[0] if known else {}),
        laws=preset.laws,
        doubts=() if known else ("the range of the data behind these constants is not known: nothing is marked",),
        uncertainty="no uncertainty is published for these constants, so no answer has an interval",
    )


def from_fits(
    fits: Sequence[FitResult], *, name: str, ranges: Ranges, note: str = "", one_size: float | None = None
) -> Source:
    """The constants of a degradation law, of a loss law, or of both, fitted with one seed.

    Their replicates then belong together row by row.  Of several laws for one thing the one with most constants is
    taken; a law that no plan can use is left out.  `ranges` are those of N, D and bits in the data.
    """
    constants: dict[str, np.ndarray] = {}
    refused, doubts = {}, [f"a plan cannot use the law {fit.law}" for fit in fits if fit.law not in USED]
    chosen = {_part(fit): fit for fit in sorted(fits, key=lambda fit: len(fit.estimates)) if fit.law in USED}
    doubts += [f"not used: {fit.law}" for fit in fits if fit.law in USED and fit not in chosen.values()]
    good = {part: result for part, result in chosen.items() if result.identified}
    rows = min((len(result.replicates) for result in good.values()), default=0)
    for part, result in chosen.items():
        if part not in good:
            refused[part] = result.message
            continue
        if result.status != "ok":
            doubts.append(f"{result.law}: {result.status.replace('_', ' ')}")
        for i, (constant, estimate) in enumerate(result.estimates.items()):
            constants[constant] = np.append(estimate.value, result.replicates[:rows, i] if rows else [])
    if "gamma" in constants and "C" in constants:  # the form in D/N, for one size
        gamma = constants.pop("gamma")
        constants |= {"C_T": constants.pop("C"), "gamma_D": gamma, "gamma_N": gamma}
        doubts.append("gamma_N was not fitted but set to gamma_D: what is said of another N rests on that")
    covers = "; ".join(dict.fromkeys(f"{result.law}: {result.interval_covers}" for result in good.values()))
    return Source(
        name=name,
        note=note,
        constants=constants,
        ranges=ranges,
        bits=whole_bits(ranges),
        laws=tuple(f"{result.law}: {result.equation}" for result in chosen.values()),
        refused=refused,
        doubts=tuple(doubts),
        one_size=one_size,
        level=fits[0].level if fits else math.nan,
        stretch=max((result.stretch for result in good.values()), default=1.0),
        uncertainty=covers if rows else "these fits come without replicates, so no answer has an interval",
        fits=good if rows else {},
    )


def _part(result: FitResult) -> str:
    return "loss" if "beta" in result.estimates else "damage"
