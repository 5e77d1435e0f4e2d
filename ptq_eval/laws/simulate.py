"""Data drawn from a law: to see what a design can tell, and whether a fit recovers what was put in.

A design is a table of columns: the variables of the law and the run that each point belongs to.  Noise is relative for
a degradation (delta spans orders of magnitude, and so does its scatter) and absolute, in nats per token, for a loss.
Points scatter independently; what all points of one run share, seed and order of the data, is `by_run`.  Evaluation
windows are not simulated, so the data carry no standard errors.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ptq_eval.errors import OptionError
from ptq_eval.laws.arguments import Constants, constants_of, pick
from ptq_eval.laws.base import Law

PAPER_SIZES = (30e6, 60e6, 110e6, 220e6)
PAPER_TOKENS = (1.5e9, 3e9, 6e9, 13e9, 26e9)
PAPER_BITS = (3.0, 4.0, 5.0, 6.0)


def grid(axes: Mapping[str, Sequence[float]], *, run: Sequence[str] = ("N", "D")) -> dict[str, np.ndarray]:
    """A full factorial design: every combination of the values of `axes`, the last one varying fastest.

    Points that agree in the axes named by `run` belong to one run.  Returns the columns, "run" and "checkpoint".
    """
    if missing := [name for name in run if name not in axes]:
        raise OptionError(
            "runs are distinguished by axes of the design", got=", ".join(missing), allowed=", ".join(axes)
        )
    rows = np.array(list(itertools.product(*axes.values())), float).reshape(-1, len(axes))
    columns = dict(zip(axes, rows.T))
    labels = np.array([" ".join(f"{name}={columns[name][i]:g}" for name in run) for i in range(len(rows))])
    return {**columns, "run": labels, "checkpoint": labels}


def paper_design() -> dict[str, np.ndarray]:
    """The design of Kumar et al., arXiv 2411.04330: 4 N × 5 D, each pair a run of its own, times 4 bit-widths."""
    return grid({"N": PAPER_SIZES, "D": PAPER_TOKENS, "P": PAPER_BITS})


def simulate(
    law: Law,
    theta: Constants,
    design: Mapping[str, Any],
    *,
    noise: float = 0.03,
    by_run: float = 0.0,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """The design with a response drawn from `law` at the constants `theta`.

    noise: standard deviation between points, by_run: between runs; relative to delta, absolute for a loss.
    The same seed gives the same data.  Raises OptionError for missing constants or columns.
    """
    if missing := [name for name in law.columns if name not in design]:
        raise OptionError(f"the law {law.name} needs columns that the design lacks", got=", ".join(missing))
    if not (noise >= 0 and by_run >= 0):
        raise OptionError("noise cannot be negative", got=f"{noise=}, {by_run=}")
    values = pick(constants_of(theta), [p.name for p in law.parameters], f"the law {law.name}")
    columns = {name: np.atleast_1d(np.asarray(column)) for name, column in design.items()}
    exact = law.predict(values, columns)
    rng = np.random.default_rng(seed)
    drawn = noise * rng.standard_normal(len(exact))
    if by_run:
        labels, member = np.unique(columns.get("run", np.arange(len(exact))), return_inverse=True)
        drawn = drawn + by_run * rng.standard_normal(len(labels))[member]
    scale = exact if law.response == "delta" else 1.0
    return {**columns, law.response: exact + scale * drawn}
