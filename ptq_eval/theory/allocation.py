"""Which scheme for which layers: the least damage that fits a budget.

    minimise Σ damage(u, s_u)   subject to   Σ bits(u, s_u) ≤ budget,   one scheme s_u for each unit u

A unit is what must share a scheme, such as layers that are fed the same tensor.  This is a multiple-choice knapsack;
it is solved as an integer programme by HiGHS, through scipy, to within 1e-5 of the optimum.  Damages are taken as
additive; what they are beyond their sum is measured afterwards and not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

_GAP = 1e-5
"""Relative distance from the optimum at which the solver may stop."""


@dataclass(frozen=True)
class Choice:
    """A scheme for a unit: the `bits` that it takes in all, and the `damage` that it does."""

    bits: int
    damage: float


def least(units: Sequence[Sequence[Choice]]) -> int:
    """The fewest bits that the units can take."""
    return sum(min(choice.bits for choice in choices) for choices in units)


def choose(units: Sequence[Sequence[Choice]], budget: int) -> list[int]:
    """The place of each unit's choice, such that the damage is least and the bits are at most `budget`.

    Raises ValueError where the units need more than the budget.
    """
    if least(units) > budget:
        raise ValueError(f"the units take at least {least(units)} bits, and the budget has {budget}")
    if not units:
        return []
    limit = budget
    while True:
        places = _solved(units, limit)
        taken = sum(choices[place].bits for choices, place in zip(units, places))
        if taken <= budget:
            return places
        limit -= taken - budget  # the solver's bounds have a tolerance, the budget has none


def _solved(units: Sequence[Sequence[Choice]], limit: int) -> list[int]:
    bits = np.array([choice.bits for choices in units for choice in choices], float)
    damage = np.array([choice.damage for choices in units for choice in choices], float)
    owner = np.repeat(np.arange(len(units)), [len(choices) for choices in units])
    one_each = sparse.csr_array((np.ones(len(bits)), (owner, np.arange(len(bits)))))
    scale = np.abs(damage).max() or 1.0
    found = milp(
        damage / scale,
        integrality=np.ones(len(bits)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(bits[None] / limit, ub=1.0)],
        options={"mip_rel_gap": _GAP},
    )
    if found.x is None:  # within the tolerance, nothing but the fewest bits fits
        return [min(range(len(choices)), key=lambda place: choices[place].bits) for choices in units]
    return [int(np.argmax(found.x[owner == unit])) for unit in range(len(units))]
