"""What a fit needs of its data: usable columns, plausible units, and points that vary enough.

`clean` makes columns as users have them into those that a fit can use: checked, filled in and counted.  A fit itself
never fails: it ends with the status "not_identified" and a reason.  That is right inside a report, where one
configuration of many has too few points.  Someone who fits one law to one table wants to know at once what to fix, so
the same requirements are errors here, in terms of the data: units, spread, number, sign.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np

from ptq_eval.errors import BitsError, NegativeDeltaError, NotVaryingError, OptionError, TooFewPointsError, UnitsError
from ptq_eval.laws.base import Data, Law, n_distinct
from ptq_eval.laws.findings import Finding, Why, why
from ptq_eval.laws.fit.losses import Loss
from ptq_eval.results.points import SAME_SIZE
from ptq_eval.units import MIN_COUNT

COLUMN_ALIASES: dict[str, tuple[str, ...]] = {
    "N": ("params", "parameters"),
    "D": ("tokens",),
    "P": ("bits", "precision"),
    "G": ("group_size",),
    "P_w": ("weights", "train_bits"),
    "P_a": ("activations",),
    "P_kv": ("kv",),
    "E_bits": ("exponent_bits",),
    "M_bits": ("mantissa_bits",),
    "B_g": ("block_size",),
    "loss": ("loss_fp",),
    "learning_rate": ("lr",),
    "phase": ("schedule_phase",),
}
"""Other names of a variable, in a table and in a mapping."""
MIN_SIZES = 3
"""Intervals of gamma_N and C_T from two sizes covered 24 % of the time: what else differs counts as size."""

CONSTANTS: dict[str, tuple[str, ...]] = {
    "N": ("A", "alpha", "gamma_N"),
    "D": ("B", "beta", "gamma_D"),
    "P": ("gamma_post", "gamma_P"),
    "G": ("gamma_G",),
    "S": ("gamma_S",),
    "E_bits": ("delta",),
    "M_bits": ("nu",),
    "P_w": ("gamma_w", "n_w", "C_w"),
    "P_a": ("gamma_a", "n_a", "C_a"),
    "P_kv": ("gamma_kv", "n_kv", "C_kv"),
}
"""The constants that describe the effect of a variable, in all laws."""
MAX_BITS = 64.0
"""No number format here has more bits."""
MAX_NATS = 1e6
"""Nats per token: no loss, and no change of one, is larger."""
MAX_RATIO = 1e5
"""A single N or D that differs from the median by more than this factor was written in another unit."""
MIN_MEDIAN = 1e4
"""A smaller median of N or D is a count of millions or billions, not of parameters or tokens."""


def clean(law: Law, data: Data, sigma: Any, loss: Loss) -> tuple[dict[str, np.ndarray], np.ndarray, int]:
    """The usable points with every optional column filled in, which rows they are [n], and how many rows were dropped
    only because their response has no logarithm.

    OptionError names a column that is missing, of another length, or not made of numbers.
    """
    y = _numbers(data, law.response, law)
    n = len(y)
    keep = np.isfinite(y)
    columns: dict[str, Any] = {**_optional(n), **data, law.response: y}
    if sigma is not None:
        given = _numbers({"sigma": np.atleast_1d(sigma)}, "sigma", law)
        columns["sigma"] = np.full(n, given[0]) if len(given) == 1 else given
    for name in law.columns:
        columns[name] = _numbers(data, name, law)
    columns["se"] = _numbers(columns, "se", law)
    for name, values in columns.items():
        if len(values) != n:
            raise OptionError(f"column {name!r} has another length than {law.response!r}", got=f"{len(values)} and {n}")
    for name in (*law.columns, *(["sigma"] if sigma is not None else [])):
        allowed = columns[name] >= 0 if name in law.from_zero else columns[name] > 0
        keep &= np.isfinite(columns[name]) & (allowed | (name in law.signed))
    undefined = keep & ~(y > 0) if loss.log else np.zeros(n, bool)
    keep &= ~undefined
    kept = {name: np.asarray(values)[keep] for name, values in columns.items()}
    kept["se"] = standard_errors(kept["se"])
    return kept, keep, int(np.sum(undefined))


def standard_errors(values: Any) -> np.ndarray:
    """Standard errors [n] as weights may use them: those that are not known, or no errors at all, are as large as the
    largest known one, so that no point is trusted for its missing error; all zero where none is known."""
    se = np.asarray(values, float)
    known = np.isfinite(se) & (se > 0)
    return np.where(known, se, se[known].max()) if known.any() else np.zeros(len(se))


def _optional(n: int) -> dict[str, np.ndarray]:
    return {"se": np.zeros(n), "run": np.zeros(n, int), "checkpoint": np.arange(n)}


def _numbers(data: Data, name: str, law: Law) -> np.ndarray:
    if name not in data:
        needed = ", ".join((*law.columns, law.response))
        raise OptionError(f"{law.name} needs a column that the data lack", got=", ".join(data), allowed=needed)
    try:
        values = np.asarray(data[name], float)
    except (TypeError, ValueError):
        raise OptionError(f"column {name!r} holds something that is not a number", got=list(data[name])[:3]) from None
    if values.ndim != 1:
        raise OptionError(f"column {name!r} has the wrong shape", got=values.shape, allowed="[n]")
    return values


def check_units(law: Law, data: Data, rows: np.ndarray, source: Callable[[str], str]) -> None:
    """Raises UnitsError where N or D, or single ones of them, look like millions or billions.

    `rows` [n] are the places in the table, and `source` says which column a variable is.
    """
    for name in [name for name in ("N", "D") if name in data and name in law.columns and name not in law.signed]:
        values, median = data[name], float(np.median(data[name]))
        if median < MIN_MEDIAN:
            raise UnitsError(
                f"{name} looks like millions or billions, not like a count of {COLUMN_ALIASES[name][-1]}",
                got=f"a median of {median:.4g}",
                allowed=f"a median of at least {MIN_MEDIAN:g}",
                remedy=f"did you mean {name}=1e9*{source(name)}?  (1e6* where the column counts millions)",
            )
        odd = np.flatnonzero((values < MIN_COUNT) | (values > MAX_RATIO * median) | (values < median / MAX_RATIO))
        if len(odd):
            raise UnitsError(
                f"{_said(name, source)} is in another unit in some rows than in others, by its size",
                got=f"{_first_of(values, odd, rows)}, the median being {median:.4g}",
                allowed=f"at least {MIN_COUNT:g}, and within {MAX_RATIO:g} times of the median",
                remedy=f"write plain counts of {COLUMN_ALIASES[name][-1]}, or exclude such rows with --where",
            )


def check_sizes(law: Law, data: Data, rows: np.ndarray, source: Callable[[str], str]) -> None:
    """Raises BitsError for more bits than a number can have, and UnitsError for a response that is no loss."""
    limits: dict[str, tuple[type[BitsError | UnitsError], float, str]] = {
        name: (BitsError, MAX_BITS, "bits") for name in ("P", "P_w", "P_a", "P_kv", "E_bits", "M_bits")
    }
    limits[law.response] = (UnitsError, MAX_NATS, "nats per token")
    for name in [name for name in limits if name in data and name not in law.signed]:
        error, most, unit = limits[name]
        large = np.flatnonzero(np.abs(data[name]) > most)
        if len(large):
            raise error(
                f"{_said(name, source)} is too large for a number of {unit}",
                got=_first_of(data[name], large, rows),
                allowed=f"at most {most:g} {unit}",
                remedy=f"write {unit}, or exclude such rows with --where",
            )


def _said(name: str, source: Callable[[str], str]) -> str:
    """A variable with the column or expression that it is taken from."""
    return name if source(name) == name else f"{name} = {source(name)}"


def _first_of(values: np.ndarray, places: np.ndarray, rows: np.ndarray) -> str:
    """The first of the values at `places`, with its row in the table, and how many more there are."""
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    return f"{values[places[0]]:.4g} in row {rows[places[0]] + 1}{more}"


def confounded(law: Law, data: Data) -> tuple[str, str] | None:
    """Two variables of `law`, one a power of the other within 5 %, as D = 20·N.

    None where too few points or values say enough already, and for laws with fixed or tied constants, which need no
    distinct values: there the rank of the derivatives tells.
    """
    n = len(data[law.response])
    known = {name: v for name, v in law.variables(data).items() if name in law.needs and np.size(v) == n}
    scarce = any(n_distinct(values) < max(2, law.needs[name]) for name, values in known.items())
    if scarce or n <= law.n_free:
        return None
    logs = {name: np.log(values + 0.5 * (name in law.from_zero)) for name, values in known.items()}
    for a, b in combinations(logs, 2):
        if max(_left_over(logs[a], logs[b]), _left_over(logs[b], logs[a])) < np.log1p(SAME_SIZE):
            return a, b
    return None


def trade_off(law: Law, pair: tuple[str, str]) -> Finding:
    """What it means for the constants of `law` that two variables lie near one power law."""
    return why(Why.CONFOUNDED, variables=list(pair), constants=[constants_of(law, name) for name in pair])


def constants_of(law: Law, variable: str) -> list[str]:
    """The constants of `law` that describe the effect of a variable."""
    return [p.name for p in law.parameters if not p.fixed and p.name in CONSTANTS.get(variable, ())]


def few_sizes(law: Law, data: Data) -> dict[str, Finding]:
    """The constants that runs of fewer than `MIN_SIZES` sizes determine only as far as nothing else differs between
    the runs, each with that reason: gamma_N, and the factor C_T or k, which goes with it."""
    names = [p.name for p in law.parameters if not p.fixed]
    if "gamma_N" not in names or (sizes := n_distinct(data["N"])) >= MIN_SIZES:
        return {}
    reason = why(Why.FEW_SIZES, sizes=sizes, needed=MIN_SIZES)
    return {name: reason for name in names if name in ("C_T", "k", "gamma_N")}


def _left_over(x: np.ndarray, y: np.ndarray) -> float:
    """The largest deviation of y [n] from a straight line in x [n]."""
    design = np.column_stack([np.ones(len(x)), x - x.mean()])
    return float(np.max(np.abs(y - design @ np.linalg.lstsq(design, y, rcond=None)[0])))


def require(law: Law, data: Data) -> None:
    """Raises TooFewPointsError, NotVaryingError and NegativeDeltaError where `law` cannot be fitted."""
    n, p = len(data[law.response]), law.n_free
    if n <= p:
        raise TooFewPointsError(
            f"{law.name}: too few points for {p} constants",
            got=f"{n} point{'s' * (n != 1)}",
            allowed=f"at least {p + 1}",
            remedy="give more rows, or fix some constants: --fixed NAME=VALUE",
        )
    for name, values in law.variables(data).items():
        count, needed = n_distinct(values), law.needs.get(name, 0)
        if count < needed:
            raise NotVaryingError(
                f"{law.name}: {name} varies too little",
                got=f"{count} distinct value{'s' * (count != 1)} of {name}, near {np.median(values):.4g}",
                allowed=f"at least {needed}, 5 % apart",
                remedy=f"add rows with another {name}, or fix the constants that belong to it: --fixed NAME=VALUE",
            )
    if pair := confounded(law, data):
        one, other = pair
        ours, theirs = (" and ".join(constants_of(law, name)) or f"the effect of {name}" for name in pair)
        raise NotVaryingError(
            f"{law.name}: {one} and {other} are never more than {100 * SAME_SIZE:g} % off one power law, so {ours} can "
            f"be traded off against {theirs}",
            got=f"one {other} for each {one} in {n} points",
            allowed=f"ratios of {one} and {other} more than {100 * SAME_SIZE:g} % apart, off any one power law",
            remedy=f"add rows with another {other} at the same {one}, or fix constants of one: --fixed NAME=VALUE",
        )
    positive = int(np.sum(data[law.response] > 0))
    if law.response == "delta" and positive < p:
        raise NegativeDeltaError(
            f"{law.name}: too little degradation to fit",
            got=f"{positive} of {n} deltas above zero",
            allowed=f"at least {p}",
            remedy="delta is the loss after minus the loss before quantization; is its sign right?",
        )
