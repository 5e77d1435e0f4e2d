"""The constants that a plan is computed from: their origin, their uncertainty, and the range of the data behind them.

A *preset* is a published table of constants; its uncertainty is not known, so its answers have no interval.  *Fits* are
`FitResult` objects, or fits stored in an output folder (see `stored`).  An answer combines constants of two fits whose
errors are correlated, so it is evaluated on every replicate of their bootstrap.

Constants are arrays [1 + replicates], the estimate first, so that one formula gives an answer and its interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ptq_eval.config.plan import FULL_BITS
from ptq_eval.errors import PlanError, UnknownPluginError, did_you_mean
from ptq_eval.laws.base import Estimate, FitResult
from ptq_eval.laws.findings import Finding
from ptq_eval.laws.fit import bootstrap
from ptq_eval.laws.formulas.presets import PRESETS, Preset
from ptq_eval.laws.plan.model import Formulas
from ptq_eval.laws.plan.question import Doubt, Question, Reason
from ptq_eval.laws.plan.serving import Serving, settle
from ptq_eval.laws.turning import predicted as critical
from ptq_eval.records import BitsAxis

Ranges = Mapping[str, tuple[float, float]]

RANGES: Mapping[str, Ranges] = {
    "KUMAR_2024": {"N": (30e6, 220e6), "D": (1.5e9, 26e9), "bits": (3, 6)},
    "HOFFMANN_2022": {"N": (70e6, 16e9), "D": (5e9, 500e9)},
    "EPOCH_2024": {"N": (57e6, 16.2e9), "D": (245e6, 318e9)},
}
"""Models, data and serving bits behind published constants, by the beginning of the preset's name."""

TRAINED = ("P_w", "P_a", "P_kv")
"""The training precisions of weights, activations and KV cache, as ranges name them."""
RUNTIME = {"P_a": "activation_bits", "P_kv": "kv_bits"}
"""The precisions of activations and cache when served, and the names of their ranges."""
DEFAULT_BITS = (3.0, 6.0)
"""Range of the serving precisions of a plan if none was fitted."""
USED = (
    "kumar_ptq", "kumar_ptq_ratio", "ouyang", "chen", "sun",
    "chinchilla", "chinchilla_d", "n_eff", "unified", "unified_delta", "n_eff_ptq", "product_ptq",
)  # fmt: skip
"""The laws whose constants a plan can use, by name."""


@dataclass(frozen=True)
class Source:
    """Constants [1 + replicates] by name, with the ranges of N, D and bits that they were fitted in.

    `bits` are the serving precisions to use if the question names none.  `refused` gives the reason why "damage",
    "loss" or "precision" is unknown, `doubts` what else to beware of; `warnings` come from the stored fit.
    `published` is what publications say of the uncertainty of their constants.  `one_size` is the N for which E holds,
    if E contains A/N^alpha, and `curve` names the run.  `verdicts` (N, bits, reason) say why the fit gives no D_crit
    for a run; the reason is None if it gives one.  `others` are the quantizers beside it that
    have fits of their own.  `only_bits`: the one serving precision that the constants hold for,
    if bits are not a variable of the law; `serving`: the group size and formats of the question.
    """

    name: str
    note: str
    constants: Mapping[str, np.ndarray]
    ranges: Ranges
    bits: tuple[float, ...]
    laws: tuple[str, ...] = ()
    refused: Mapping[str, Finding] = field(default_factory=dict)
    doubts: tuple[Finding, ...] = ()
    warnings: tuple[str, ...] = ()
    one_size: float | None = None
    curve: str = ""
    verdicts: tuple[tuple[float, float, Finding | None], ...] = ()
    level: float = math.nan
    stretch: float = 1.0
    published: tuple[str, ...] = ()
    fits: Mapping[str, FitResult] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    only_bits: float | None = None
    axis: BitsAxis = "bits"
    serving: Serving = field(default_factory=Serving)

    def asked(self, question: Question) -> tuple[Source, tuple[float, ...]]:
        """The same constants for the group size and formats of a question, and its serving precisions.

        Raises PlanError for an option that the law has no variable for, for one that it lacks, and for bytes or
        costs of serving where bits are not those that are stored.
        """
        if self.axis == "gaussian" and (question.memory or question.served_tokens):
            raise PlanError(
                "this fit counts the bits of an ideal code, not the bits that are stored",
                got="--memory" if question.memory else "--served-tokens",
                remedy=f"ptq-eval fit {self.name} --bits-axis effective, then plan again",
            )
        serving, bits = settle(self.formulas().law, self.only_bits, question)
        return replace(self, serving=serving), bits or self.bits

    def formulas(self, axes: int = 0) -> Formulas:
        """The formulas of these constants, whose results are [1 + replicates, …] with `axes` further axes."""
        shape = (-1, *[1] * axes)
        return Formulas(
            {name: values.reshape(shape) for name, values in self.constants.items()}, self.one_size, self.serving
        )

    def estimate(self, values: Any, *, log: bool = True) -> Estimate:
        """`values` [1 + replicates] as a value with its interval; infinite replicates open an end."""
        values = np.broadcast_to(np.asarray(values, float), np.shape(values) or (1,))
        value, draws = float(values[0]), values[1:]
        if not len(draws) or np.isnan(draws).any() or not math.isfinite(value):
            return Estimate(value)
        if np.allclose(draws, value, rtol=1e-9, atol=0):  # fixed, not estimated
            return Estimate(value)
        on_log = log and value > 0 and bool(np.all(draws > 0))
        low, high = bootstrap.interval(value, draws, factor=self.stretch, level=self.level, log=on_log)
        return Estimate(value, low, high)

    def critical_tokens(self, N: float, bits: float) -> tuple[Estimate, tuple[Finding, ...]]:
        """D_crit with its interval; NaN and the reason if the fits behind the constants do not determine it.

        The verdict on the run of the nearest N, at the nearest bits that were measured, applies here too.
        """
        why, found = self._verdict(N, bits), Estimate(math.nan)
        if not why and {"damage", "loss"} <= set(self.fits):
            why = _given_none(critical.degradation_reason(self.fits["damage"], self.fits["loss"]))
        if why:
            return found, why
        turn = self.estimate(self.formulas().critical_tokens(N, bits))
        finite = math.isfinite(turn.value)
        why = _given_none(critical.wide_interval_reason(turn)) if finite else (Finding(Reason.NO_TURN),)
        return (found, why) if why else (turn, ())

    def _verdict(self, N: float, bits: float) -> tuple[Finding, ...]:
        """Why the fit gives no D_crit for the nearest N and bits that were measured."""
        apart = min((abs(at - bits) for _, at, _ in self.verdicts), default=0.0)
        near = [verdict for verdict in self.verdicts if abs(verdict[1] - bits) <= apart]
        if not near:
            return ()
        N_apart = min(abs(math.log(at / N)) for at, _, _ in near)
        return next(((why,) for at, _, why in near if abs(math.log(at / N)) <= N_apart and why), ())

    def beyond(self, **at: float | None) -> dict[str, float]:
        """The factor by which each of N, D, P and bits is outside the fitted range; P is the precision of all parts.

        The same for group size and format, if the law depends on them.
        """
        found, bits = {}, at.get("bits")
        held = {} if bits is None or math.isnan(bits) else self.serving.variables(bits)
        served = {RUNTIME[name]: held[name] for name in RUNTIME if held.get(name, FULL_BITS) < FULL_BITS}
        for name, value in {**at, **{k: v for k, v in held.items() if k not in TRAINED}, **served}.items():
            ends = [self.ranges[axis] for axis in (TRAINED if name == "P" else (name,)) if axis in self.ranges]
            if value is None or not 0 < value < math.inf or not ends:
                continue
            if (factor := max(max(value / high, low / value) for low, high in ends)) > 1.005:
                found[name] = factor
        return found


def _given_none(found: Finding | None) -> tuple[Finding, ...]:
    return (Finding(Reason.FIT_GIVES_NONE, {"found": found}),) if found else ()


def whole_bits(ranges: Ranges) -> tuple[float, ...]:
    """The whole numbers of bits within a fitted range."""
    low, high = ranges.get("bits", DEFAULT_BITS)
    return tuple(float(bits) for bits in range(math.ceil(low), math.floor(high) + 1))


def preset_named(name: str, *, offsets: bool = True) -> Source:
    """Published constants by name, or by several joined by commas; `offsets`: keep the offsets n of N_eff.

    Raises UnknownPluginError, and what `from_preset` raises.
    """
    names = list(dict.fromkeys(part.strip() for part in name.split(",")))
    if unknown := [part for part in names if part not in PRESETS]:
        remedy = did_you_mean(unknown[0], PRESETS) or "choose one of these, or several joined by commas"
        raise UnknownPluginError("unknown preset", got=repr(unknown[0]), allowed=", ".join(PRESETS), remedy=remedy)
    presets = [PRESETS[part] for part in names]
    return from_preset(*(preset if offsets else preset.without_offsets() for preset in presets))


def from_preset(*presets: Preset) -> Source:
    """Published constants, and the papers' ranges if they are known; later presets override earlier ones.

    Raises PlanError for presets of several degradation laws, and for one whose constants the others replace.
    """
    known, constants = {}, {}
    for preset in presets:
        known[preset.name] = next((RANGES[name] for name in RANGES if preset.name.startswith(name)), {})
        constants |= {name: (float(value), preset.name) for name, value in preset.constants.items()}
    names = ",".join(preset.name for preset in presets)
    unused = [preset.name for preset in presets if preset.name not in {owner for _, owner in constants.values()}]
    several = [preset.name for preset in presets if "gamma_D" in preset.constants]
    if unused or len(several) > 1:
        why = f"nothing of {unused[0]} is left" if unused else f"{' and '.join(several)} are different degradation laws"
        raise PlanError(f"these presets do not go together: {why}", got=names, remedy="drop one of them")
    axes = dict.fromkeys(axis for ranges in known.values() for axis in ranges)
    columns = {axis: [ranges[axis] for ranges in known.values() if axis in ranges] for axis in axes}
    ranges = {axis: (max(low for low, _ in ends), min(high for _, high in ends)) for axis, ends in columns.items()}
    laws = tuple(law for preset in presets for law in preset.laws)
    only = next((preset.bits for preset in presets if preset.bits is not None), None)
    return Source(
        name=names,
        note=" ".join(f"{preset.source}. {preset.note}" for preset in presets),
        constants={name: np.array([value]) for name, (value, _) in constants.items()},
        ranges=ranges,
        bits=whole_bits(ranges),
        laws=laws,
        only_bits=only,
        doubts=tuple(Finding(Doubt.RANGE_UNKNOWN, {"preset": name}) for name, ends in known.items() if not ends),
        published=tuple(dict.fromkeys(preset.uncertainty for preset in presets)),
    )


def from_fits(
    fits: Sequence[FitResult],
    *,
    name: str,
    ranges: Ranges,
    note: str = "",
    one_size: float | None = None,
    curve: str = "",
) -> Source:
    """The constants of a degradation law, of a loss law, or of both, fitted with one seed.

    Their replicates then belong together row by row.  Of several laws for one thing the one with most constants is
    taken; a law that no plan can use is excluded.  `ranges`: of N, D and bits in the data.
    """
    constants: dict[str, np.ndarray] = {}
    refused: dict[str, Finding] = {}
    doubts = [Finding(Doubt.LAW_NOT_USABLE, {"law": fit.law}) for fit in fits if fit.law not in USED]
    chosen = {_part(fit): fit for fit in sorted(fits, key=lambda fit: len(fit.estimates)) if fit.law in USED}
    others = [fit for fit in fits if fit.law in USED and fit not in chosen.values()]
    doubts += [Finding(Doubt.LAW_NOT_USED, {"law": fit.law}) for fit in others]
    good = {part: result for part, result in chosen.items() if result.identified}
    rows = min((len(result.replicates) for result in good.values()), default=0)
    for part, result in chosen.items():
        if part not in good:
            if result.status.reason is not None:
                refused[part] = result.status.reason
            continue
        for i, (constant, estimate) in enumerate(result.estimates.items()):
            constants[constant] = np.append(estimate.value, result.replicates[:rows, i] if rows else [])
    if "gamma" in constants and "C" in constants:  # the form in D/N, for one size
        gamma = constants.pop("gamma")
        constants |= {"C_T": constants.pop("C"), "gamma_D": gamma, "gamma_N": gamma}
        doubts.append(Finding(Doubt.ONE_EXPONENT))
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
        curve=curve,
        level=fits[0].level if fits else math.nan,
        stretch=max((result.stretch for result in good.values()), default=1.0),
        fits=good,
    )


def _part(result: FitResult) -> str:
    return "loss" if "beta" in result.estimates else "damage"
