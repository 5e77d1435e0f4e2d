"""What makes a fit impossible, said before it is tried and in terms of the data: units, spread, number, sign.

A fit itself never fails: it ends with the status "not_identified" and a reason.  That is right inside a report,
where one configuration of many has too few points.  Someone who brings one table and asks for one law wants to
know at once what to mend, so the same requirements are errors here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ptq_eval.errors import NegativeDeltaError, NotVaryingError, TooFewPointsError, UnitsError
from ptq_eval.laws.base import Data, Law, n_distinct

USUAL: dict[str, tuple[str, ...]] = {
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
"""Other names by which a variable goes, in a table and in a mapping."""
FAR = 1e5
"""A single N or D that is this many times larger or smaller than the median was written in another unit."""
LEAST = 1e3
"""No model has fewer parameters than this, and no checkpoint fewer tokens."""
FEWEST = 1e4
"""A median of N or D below this is no count of parameters or tokens, but one of millions or billions."""


def check_units(law: Law, data: Data, rows: np.ndarray, source: Callable[[str], str]) -> None:
    """Raises UnitsError where N or D, or single ones of them, look like millions or billions.

    `rows` [n] are the places in the table, and `source` says which column a variable is.
    """
    for name in [name for name in ("N", "D") if name in data and name in law.columns]:
        values, median = data[name], float(np.median(data[name]))
        if median < FEWEST:
            raise UnitsError(
                f"{name} looks like millions or billions, not like a count of {USUAL[name][-1]}",
                got=f"a median of {median:.4g}",
                allowed=f"a median of at least {FEWEST:g}",
                remedy=f"did you mean {name}=1e9*{source(name)}?  (1e6* where the column counts millions)",
            )
        odd = np.flatnonzero((values < LEAST) | (values > FAR * median) | (values < median / FAR))
        if len(odd):
            said = name if source(name) == name else f"{name} = {source(name)}"
            more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
            raise UnitsError(
                f"{said} is in another unit in some rows than in others, by its size",
                got=f"{values[odd[0]]:.4g} in row {rows[odd[0]] + 1}{more}, the median being {median:.4g}",
                allowed=f"at least {LEAST:g}, and within {FAR:g} times of the median",
                remedy=f"write plain counts of {USUAL[name][-1]}, or leave such rows out with --where",
            )


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
    positive = int(np.sum(data[law.response] > 0))
    if law.response == "delta" and positive < p:
        raise NegativeDeltaError(
            f"{law.name}: too little degradation to fit",
            got=f"{positive} of {n} deltas above zero",
            allowed=f"at least {p}",
            remedy="delta is the loss after minus the loss before quantization; is its sign right?",
        )
