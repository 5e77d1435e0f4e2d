"""The loss before and after quantization as a function of N, D and P, composed of the laws whose constants are known.

The laws themselves are in their own files; this module only selects those that a set of constants determines:

    before(N, D, P) = E + A/(N·f(P))^alpha + B/D^beta        f = 1 if the law of training precision is unknown
    damage(N, D, b) = equation 2 of Kumar et al., or Ouyang's law, for a model trained at 16 bits
    damage(N, D, b, P) = equation 9 for a model trained at P > b bits, zero at P = b
    damage(N, D, b) = Chen's law at a given group size, or what training in a floating-point format of b bits adds under
                      Sun's law, in which no quantization follows

If C_w, C_a, C_kv of equation 9 are not known, its last factor, which is between 0 and 1, is set to 1: the damage is
then the most that equation 9 allows (see `robust`).  P is one precision for all parts of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from ptq_eval.laws.base import Data, Theta
from ptq_eval.laws.calculator import FULL_BITS
from ptq_eval.laws.formulas.chen import Chen
from ptq_eval.laws.formulas.chinchilla import Chinchilla, ChinchillaD, Growing
from ptq_eval.laws.formulas.kumar import KumarPTQ
from ptq_eval.laws.formulas.n_eff import PARTS as MODEL_PARTS
from ptq_eval.laws.formulas.n_eff import Capacity
from ptq_eval.laws.formulas.ouyang import Ouyang
from ptq_eval.laws.formulas.served import Served, laws_of
from ptq_eval.laws.formulas.sun import Sun
from ptq_eval.laws.formulas.unified import UnifiedDelta
from ptq_eval.laws.plan.serving import Serving
from ptq_eval.results.points import SAME_SIZE

NEEDED: Mapping[str, tuple[str, ...]] = {
    "damage": tuple(p.name for p in KumarPTQ.parameters),
    "slope": ("B", "beta"),
    "loss": tuple(p.name for p in Chinchilla.parameters),
    "precision": ("gamma_w", "gamma_a", "gamma_kv"),
    "robustness": ("C_w", "C_a", "C_kv"),
}
"""What an answer may need, and the constants of each."""
_STEPS = 50
"""Of a bisection in bits."""


class Formulas:
    """The formulas that `constants` (floats, or arrays that broadcast against N, D and P) determine.

    one_size: the N for which E holds, if E contains A/N^alpha.  serving: the group size and the formats, for laws that
    depend on them.
    """

    def __init__(
        self, constants: Mapping[str, Any], one_size: float | None = None, serving: Serving | None = None
    ) -> None:
        self.constants, self.one_size, self.serving = constants, one_size, serving or Serving()

    def has(self, *names: str) -> bool:
        """Whether all of these constants are known."""
        return set(names) <= set(self.constants)

    def missing(self, part: str, N: float | None = None) -> tuple[str, ...]:
        """The constants of a part of `NEEDED` that are not known, at N if the loss is known for one size only."""
        if (part == "precision" and self.capacity) or (part == "damage" and self.law):
            return ()
        if part == "loss" and self.one_size is not None:
            near = N is not None and abs(N / self.one_size - 1) <= SAME_SIZE
            return () if near else ("A", "alpha")
        return tuple(name for name in NEEDED[part] if name not in self.constants)

    @cached_property
    def law(self) -> Growing | None:
        """The degradation law that is known."""
        laws = (*laws_of(self.constants), KumarPTQ(), Ouyang(), Chen(), Sun())
        return next((law for law in laws if self.has(*(p.name for p in law.parameters))), None)

    @property
    def by_bits(self) -> bool:
        """Whether the damage is known at any number of bits."""
        return self.law is not None and bool({"P", "P_w"} & set(self.law.columns))

    @property
    def trained_as_served(self) -> bool:
        """Whether the damage comes from training in the format served, so that no quantization follows."""
        return isinstance(self.law, Sun)

    @cached_property
    def capacity(self) -> Capacity | None:
        """The law of training precision that is known: for which parts, with which offsets."""
        if self.has("gamma_bar"):
            return Capacity(offsets=self.has("n_bar"), tied=True)
        parts = tuple(part for part, letter in MODEL_PARTS.items() if self.has(f"gamma_{letter}"))
        return Capacity(parts, self.has(*(f"n_{MODEL_PARTS[part]}" for part in parts))) if parts else None

    def share(self, P: Any) -> Any:
        """N_eff/N at training precision P; 1 where no law of training precision is known."""
        capacity = self.capacity
        return capacity.factor(self.constants, capacity.at(P)) if capacity else 1.0

    def before(self, N: Any, D: Any, P: Any = FULL_BITS) -> Any:
        """Loss before quantization, nats per token, for N parameters trained on D tokens at P bits."""
        data = {"N": N * self.share(P), "D": D}
        law = Chinchilla() if self.one_size is None else ChinchillaD()
        with np.errstate(divide="ignore"):
            return law.predict(self.constants, data)

    def damage(self, N: Any, D: Any, bits: Any, P: Any = FULL_BITS) -> Any:
        """What quantization from P to `bits` adds to the loss, nats per token; an upper bound unless `robust`.

        At P = 16 the degradation law itself holds, and no bound is needed.
        """
        return self._degradation(lambda law, theta, data: law.added(theta, {**data, "D": D}), N, bits, P)

    def _degradation(self, of: Callable[[Growing, Theta, Data], Any], N: Any, bits: Any, P: Any) -> Any:
        """`of` the degradation law from P to `bits`, its constants, and the variables of N and bits."""
        assert self.law is not None
        if "P" not in self.law.columns:
            data: Any = {"N": N, **self.serving.variables(bits)}
            return of(self.law, self.constants, data)
        data = {"N": N, "P": bits}
        full = np.asarray(P) == FULL_BITS
        if self.capacity is None or (not self.robust and np.all(full)):
            return of(self.law, self.constants, data)
        law = UnifiedDelta(self.capacity.parts, offsets=self.capacity.offsets, tied=self.capacity.tied)
        none = {f"C_{MODEL_PARTS[part]}": math.inf for part in self.capacity.parts}
        found = of(law, {**none, **self.constants}, {**data, **self.capacity.at(P)})
        return found if self.robust or not np.any(full) else np.where(full, of(self.law, self.constants, data), found)

    @property
    def unified(self) -> bool:
        """Whether damage is known for models trained below 16 bits, at least as an upper bound."""
        return self.capacity is not None and isinstance(self.law, KumarPTQ)

    @property
    def robust(self) -> bool:
        """Whether the last factor of equation 9 is known."""
        return self.capacity is not None and self.has(*(f"C_{MODEL_PARTS[part]}" for part in self.capacity.parts))

    def smallest_bits(self, N: Any, D: Any, most: float) -> Any:
        """The serving precision, as a real number of bits, at which quantization costs exactly `most` nats per token.

        The inverse of the degradation law in P: gamma_post·log(delta(P = 0)/most), or of Ouyang's power of P; by
        bisection for a law of three precisions, infinite where activations and cache alone cost more.
        """
        c = self.constants
        if isinstance(self.law, Served):
            return self._bisected(N, D, most)
        if isinstance(self.law, KumarPTQ):
            return np.maximum(c["gamma_post"] * np.log(self.damage(N, D, 0.0) / most), 0.0)
        return (self.damage(N, D, 1.0) / most) ** (1 / c["gamma_P"])

    def _bisected(self, N: Any, D: Any, most: float) -> Any:
        low = np.zeros(np.shape(self.damage(N, D, 1.0)))
        high = low + FULL_BITS
        for _ in range(_STEPS):
            middle = (low + high) / 2
            enough = self.damage(N, D, middle) <= most
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        return np.where(self.damage(N, D, FULL_BITS) <= most, high, math.inf)

    def critical_tokens(self, N: Any, bits: Any, P: Any = FULL_BITS) -> Any:
        """D_crit in tokens of a model trained at P bits; infinite if the damage does not grow with D."""
        return self._degradation(lambda law, theta, data: law.critical_tokens(theta, theta, data), N, bits, P)
