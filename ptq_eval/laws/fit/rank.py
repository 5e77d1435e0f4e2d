"""Whether points at these places can determine the free constants of a law, whatever the response is.

What a law needs of each variable alone (`Law.needs`) says nothing once constants are fixed or tied: alpha = beta takes
one D less, a fixed E one D or one N.  So the derivatives are looked at, at places where the search begins: constants
that can change together there without changing the prediction cannot be distinguished.  Values of a variable within 5 %
of each other count as one, as everywhere.
"""

from __future__ import annotations

import numpy as np

from ptq_eval.errors import NotVaryingError
from ptq_eval.laws.base import Data, Law, n_distinct
from ptq_eval.laws.fit.diagnostics import SINGULAR, jacobian
from ptq_eval.laws.fit.losses import PLAIN_SQUARES, make_loss
from ptq_eval.laws.fit.requirements import constants_of, require
from ptq_eval.laws.fit.solver import Problem, search_bounds, to_search
from ptq_eval.results.points import SAME_SIZE

_TRIED = 4
_INSIDE = 1e-6
_NAMED = 1e-3


def undetermined(law: Law, data: Data) -> list[str]:
    """The constants that trade off against each other wherever they are; [] where all can be determined.

    A constant without any effect, as beta where B is fixed at zero, is not among them.
    """
    places = {**data, **{name: _merged(np.asarray(data[name], float)) for name in law.columns}}
    problem = Problem(law, places, np.ones(len(data[law.response])), make_loss(PLAIN_SQUARES))
    low, high = search_bounds(law)
    inside = _INSIDE * np.minimum(high - low, 1.0)
    found: list[str] = []
    for theta in law.starts(data, np.random.default_rng(0))[:_TRIED]:
        point = np.clip(to_search(law, theta), low + inside, high - inside)
        names = _blind(problem, point, data[law.response])
        if not names:
            return []
        found = found or names
    return found


def require_determined(law: Law, data: Data) -> None:
    """`require`, and NotVaryingError where the free constants need more distinct values together than there are."""
    require(law, data)
    counts = {name: n_distinct(data[name]) for name in law.columns}
    if min(counts.values()) >= law.n_free or not (names := undetermined(law, data)):
        return
    variables = [x for x in law.columns if {*constants_of(law, x)} & {*names}] or list(law.columns)
    few = min(variables, key=lambda x: counts[x])
    raise NotVaryingError(
        f"{law.name}: {few} varies too little to determine {', '.join(names)} together",
        got=", ".join(f"{counts[x]} distinct value{'s' * (counts[x] != 1)} of {x}" for x in variables),
        allowed=f"more values of {few}, {100 * SAME_SIZE:g} % apart",
        remedy=f"add rows with another {few}, or fix one of these constants: --fixed NAME=VALUE",
    )


def _blind(problem: Problem, point: np.ndarray, y: np.ndarray) -> list[str]:
    columns = jacobian(problem, point, y)
    size = np.linalg.norm(columns, axis=0)
    known = np.isfinite(size) & (size > 0)
    names = [p.name for p, use in zip(problem.law.parameters, known) if use]
    _, singular, directions = np.linalg.svd(columns[:, known] / size[known])
    if len(singular) == len(names) and (not names or singular[-1] > SINGULAR):
        return []
    return [name for name, share in zip(names, directions[-1]) if abs(share) > _NAMED]


def _merged(values: np.ndarray) -> np.ndarray:
    """Each value [n] replaced by the least of those that count as the same."""
    merged, first = values.copy(), np.nan
    for value in np.unique(values):
        if not value - first <= SAME_SIZE * abs(first):
            first = value
        merged[values == value] = first
    return merged
