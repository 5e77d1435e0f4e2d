"""A law with some of its constants fixed, tied to each other, or kept within narrower bounds.

The result is a law again, with fewer constants to search for; fitter, bootstrap and profile do not depend on the
restriction.  It does not inherit the count of distinct values that the full law needs, since with a fixed gamma_N one N
is enough; whether the remaining constants are determined is then left to the rank of the derivatives.  A factor of
`absent` may be fixed at zero, which removes its term.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ptq_eval.errors import OptionError
from ptq_eval.laws.base import Data, Law, Parameter, Theta
from ptq_eval.laws.findings import Finding

_SAME = ("name", "source", "response", "columns", "min_scatter", "from_zero", "one_value", "signed", "absent")


def restrict(
    law: Law,
    fixed: Mapping[str, float] | None = None,
    tied: Iterable[tuple[str, str]] = (),
    bounds: Mapping[str, tuple[float, float]] | None = None,
) -> Law:
    """`law` with constants `fixed` at values, pairs `tied` to be equal, and `bounds` in place of its own.

    Returns `law` itself where nothing is restricted.  OptionError names a constant that the law lacks, a value
    outside the law's bounds, bounds the wrong way round, or ties that contradict each other.
    """
    fixed, bounds, pairs = dict(fixed or {}), dict(bounds or {}), [tuple(pair) for pair in tied]
    known = [p.name for p in law.parameters]
    for name in [*fixed, *bounds, *(name for pair in pairs for name in pair)]:
        if name not in known:
            raise OptionError(f"{law.name} has no constant of this name", got=repr(name), allowed=", ".join(known))
    for name, value in fixed.items():
        own = law.parameters[known.index(name)]
        if value == 0 and name in law.absent:
            continue  # the term is absent, though no search on a logarithmic scale ends there
        if not (math.isfinite(value) and own.low <= value <= own.high):
            raise OptionError(f"{name} cannot be fixed there", got=value, allowed=f"{own.low:g} to {own.high:g}")
    parameters = tuple(_bounded(p, bounds[p.name]) if p.name in bounds else p for p in law.parameters)
    if not fixed and not pairs:
        return law if not bounds else _with_parameters(law, parameters)
    return Restricted(law, parameters, {name: float(value) for name, value in fixed.items()}, _groups(known, pairs))


class Restricted(Law):
    """A law searched for in fewer constants; `complete` gives all of them."""

    def __init__(
        self, law: Law, parameters: tuple[Parameter, ...], fixed: dict[str, float], leader: dict[str, str]
    ) -> None:
        """`leader` says by name which constant each is equal to: itself where it is not tied."""
        self.full, self._leader, self._fixed = law, leader, {}
        for name, value in fixed.items():
            if self._fixed.setdefault(leader[name], value) != value:
                raise OptionError(f"{name} and {leader[name]} are tied and fixed at different values", got=value)
        free = [p for p in parameters if leader[p.name] == p.name and p.name not in self._fixed]
        self.parameters = tuple(_common(p, [q for q in parameters if leader[q.name] == p.name]) for p in free)
        if not self.parameters:
            raise OptionError(f"every constant of {law.name} is fixed", remedy="leave at least one to be fitted")
        for name in _SAME:
            setattr(self, name, getattr(law, name))
        self.needs: Mapping[str, int] = {}
        nonlinear = {leader[p.name] for p in parameters if p.name not in law.linear}
        self.linear = tuple(p.name for p in self.parameters if p.name not in nonlinear)  # type: ignore[misc]
        pairs = [f"{name} = {head}" for name, head in leader.items() if name != head]
        pairs += [f"{name} = {value:g} fixed" for name, value in self._fixed.items()]
        self.equation = f"{law.equation}, {', '.join(pairs)}"  # type: ignore[misc]

    def complete(self, theta: Theta) -> dict[str, Any]:
        """All constants of the full law, by name and in its order; of the first law where restrictions are nested."""
        return self.full.complete(self._inner(theta))

    def predict(self, theta: Theta, data: Data) -> np.ndarray:
        """The full law's prediction."""
        return self.full.predict(self._inner(theta), data)

    def gradient(self, theta: Theta, data: Data) -> dict[str, np.ndarray]:
        """The full law's derivatives, summed over what is tied."""
        return self._collected(self.full.gradient(self._inner(theta), data))

    def linearise(self, theta: Theta, data: Data) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Both."""
        f, gradient = self.full.linearise(self._inner(theta), data)
        return f, self._collected(gradient)

    def starts(self, data: Data, rng: np.random.Generator) -> list[dict[str, float]]:
        """The full law's, with tied constants at the first one's value."""
        names = [p.name for p in self.parameters]
        return [{name: theta[name] for name in names} for theta in self.full.starts(data, rng)]

    def objection(self, data: Data) -> Finding | None:
        """The full law's, for as many constants as are left."""
        return _with_parameters(self.full, self.parameters, needs={}).objection(data)

    def _inner(self, theta: Theta) -> dict[str, Any]:
        """What the full law is searched for in, beside whatever else is in `theta`."""
        heads = {**self._fixed, **theta}
        return heads | {p.name: heads[self._leader[p.name]] for p in self.full.parameters}

    def _collected(self, gradient: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        total: dict[str, np.ndarray] = {}
        for name, derivative in gradient.items():
            head = self._leader[name]
            if head in self._fixed:
                continue
            total[head] = total[head] + derivative if head in total else derivative
        return total


def _with_parameters(law: Law, parameters: tuple[Parameter, ...], **more: Any) -> Law:
    other = copy.copy(law)
    for name, value in {"parameters": parameters, **more}.items():
        setattr(other, name, value)
    return other


def _bounded(p: Parameter, ends: tuple[float, float]) -> Parameter:
    low, high = (float(end) for end in ends)
    if not low < high or (p.log and not low > 0) or math.isnan(low + high):
        allowed = "low < high" + (", both above zero" if p.log else "")
        raise OptionError(f"bounds of {p.name} make no sense", got=ends, allowed=allowed)
    return replace(p, low=low, high=high)


def _common(p: Parameter, group: list[Parameter]) -> Parameter:
    low, high = max(q.low for q in group), min(q.high for q in group)
    if not low <= high:
        raise OptionError(f"the bounds of what is tied to {p.name} do not overlap", got=f"{low:g} and {high:g}")
    return replace(p, low=low, high=high)


def _groups(names: list[str], tied: Iterable[tuple[str, ...]]) -> dict[str, str]:
    """By name, the first constant (in the law's order) of those it is tied to, directly or by others."""
    leader = {name: name for name in names}
    for pair in tied:
        if len(pair) != 2:
            raise OptionError("ties are pairs of constants", got=pair)
        heads = {leader[name] for name in pair}
        first = min(heads, key=names.index)
        leader = {name: first if head in heads else head for name, head in leader.items()}
    return leader


def started(law: Law, start: Mapping[str, float], several: bool = False) -> Law:
    """`law` whose search begins at `start` too; `several`: names of other laws' constants are skipped.

    Raises OptionError for a constant that the law lacks.
    """
    known = {p.name for p in law.parameters}
    if (unknown := [name for name in start if name not in known]) and not several:
        raise OptionError(f"{law.name} has no constant of this name", got=unknown[0], allowed=", ".join(known))
    own = {name: value for name, value in start.items() if name in known}
    if not own:
        return law
    other = copy.copy(law)

    def starts(data: Data, rng: np.random.Generator) -> list[dict[str, float]]:
        usual = law.starts(data, rng)
        return [*({**theta, **own} for theta in usual[:3]), *usual]

    other.starts = starts  # type: ignore[method-assign]
    return other
