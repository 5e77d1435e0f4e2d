"""One free efficiency per category: a model in a format counts as one with eff times as many parameters (or tokens).

    f(eff_c·N, …)        c the category of a row: its format, quantizer, data mix, …; eff = 1 for the reference

Any law that reads the variable can have it.  Efficiencies of N follow Kumar et al.'s effective parameters (arXiv
2411.04330) without their formula for the bits: nothing is assumed of how formats compare.  Ties make groups of
categories alike (`--tied 'eff_N[MXFP4]=eff_N[NVFP4]'`).  The reference is needed because a common factor of all
efficiencies is one of A.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ptq_eval.errors import OptionError
from ptq_eval.laws.base import Data, Law, Parameter, Theta
from ptq_eval.laws.findings import Finding, Why, why

FULL_PRECISION = re.compile(r"(bf|fp|float|bfloat)?(16|32)|none|baseline|full.*|unquantized", re.IGNORECASE)
"""Categories that are the reference where there is one of them."""
MAX_EFFICIENCY = 1e3
"""Efficiencies are searched for between its inverse and this."""
MAX_CATEGORIES = 50
_STEP = 1e-5
_SAME = (
    "name",
    "source",
    "response",
    "columns",
    "min_scatter",
    "from_zero",
    "one_value",
    "needs",
    "linear",
    "signed",
    "absent",
)


def reference(labels: Sequence[str]) -> str:
    """The category with efficiency one: full precision where exactly one name says so, else the most frequent."""
    names = list(dict.fromkeys(labels))
    full = [name for name in names if FULL_PRECISION.fullmatch(name)]
    return full[0] if len(full) == 1 else max(names, key=list(labels).count)


class PerCategory(Law):
    """`law` with the `variable` of each row multiplied by the efficiency of its category."""

    def __init__(self, law: Law, variable: str, labels: Sequence[str]) -> None:
        """`labels` [n]: the category of each row.  Raises OptionError."""
        if variable not in law.columns:
            what = f"--per-category: {law.name} does not read {variable}"
            raise OptionError(what, allowed=", ".join(law.columns), remedy="--per-category N=COLUMN")
        self.law, self.variable, self.reference = law, variable, reference(labels)
        names = [name for name in dict.fromkeys(labels) if name != self.reference]
        if not names or len(names) >= MAX_CATEGORIES:
            allowed = f"2 to {MAX_CATEGORIES} categories"
            raise OptionError("--per-category: one free efficiency for each", got=f"{len(names) + 1}", allowed=allowed)
        self.key = f"category of {variable}"
        self.own = {f"eff_{variable}[{name}]": place for place, name in enumerate(names, start=1)}
        self.places = {self.reference: 0, **{name: place for place, name in enumerate(names, start=1)}}
        for name in _SAME:
            setattr(self, name, getattr(law, name))
        added = [Parameter(name, 1 / MAX_EFFICIENCY, MAX_EFFICIENCY, log=True) for name in self.own]
        self.parameters = (*law.parameters, *added)
        self.equation = (  # type: ignore[misc]
            f"{law.equation}, with eff_{variable}·{variable} for {variable} (eff_{variable}[{self.reference}] = 1)"
        )

    def column(self, labels: Sequence[str]) -> np.ndarray:
        """The categories [n] as the numbers that `predict` reads under `key`."""
        return np.array([float(self.places[label]) for label in labels])

    def predict(self, theta: Theta, data: Data) -> np.ndarray:
        """The law's prediction at the effective variable."""
        return self.law.predict(theta, self._effective(theta, data))

    def gradient(self, theta: Theta, data: Data) -> dict[str, np.ndarray]:
        """The law's derivatives, and those by the efficiencies."""
        return self.linearise(theta, data)[1]

    def linearise(self, theta: Theta, data: Data) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Both; by an efficiency through the central difference along the logarithm of the variable."""
        inner = self._effective(theta, data)
        f, by = self.law.linearise(theta, inner)
        x = inner[self.variable]
        up, down = (self.law.predict(theta, {**inner, self.variable: x * np.exp(h)}) for h in (_STEP, -_STEP))
        slope = (up - down) / (2 * _STEP)
        effs = {name: slope * (data[self.key] == place) / theta[name] for name, place in self.own.items()}
        return f, {**by, **effs}

    def starts(self, data: Data, rng: np.random.Generator) -> list[dict[str, float]]:
        """The law's own for equal efficiencies, and for some that are not."""
        found = []
        for eff in (1.0, 0.5, None):
            effs = {name: eff or float(np.exp(rng.uniform(np.log(0.1), 0.5))) for name in self.own}
            found += [{**theta, **effs} for theta in self.law.starts(self._effective(effs, data), rng)[:6]]
        return found

    def complete(self, theta: Theta) -> dict[str, Any]:
        """The law's constants, then the efficiencies."""
        return {**self.law.complete(theta), **{name: theta[name] for name in self.own}}

    def variables(self, data: Data) -> dict[str, np.ndarray]:
        """The law's."""
        return self.law.variables(data)

    def held(self, data: Data) -> dict[str, tuple[float, Finding]]:
        """The law's."""
        return self.law.held(data)

    def objection(self, data: Data) -> Finding | None:
        """Too few points; else the law's."""
        n, own = len(data[self.response]), {p.name for p in self.parameters}
        if n <= self.n_free:
            return why(Why.TOO_FEW_POINTS, points=n, constants=self.n_free)
        inner = copy.copy(self.law)
        inner.parameters = tuple(p for p in self.law.parameters if p.name in own)
        inner.needs = self.needs
        return inner.objection(data)

    def _effective(self, theta: Theta, data: Data) -> dict[str, Any]:
        place, eff = data[self.key], 1.0
        for name, own in self.own.items():
            eff = eff + np.where(place == own, theta[name] - 1.0, 0.0)
        return {**data, self.variable: data[self.variable] * eff}
