"""The best (N, D, P) that a budget buys, for any loss: a search, because no closed form covers the cases asked for.

    minimise L(N, D, P)   subject to   (6/16)·N·D·P + k·N·P_serve·T = C     (Kumar et al., arXiv 2411.04330, eq. 5)

The cost is counted in operations at 16 bits: with P = 16 and nothing served it is the familiar 6·N·D.  T is the number
of tokens served, and k = 2/16 the forward share of the six operations; appendix E.3 of the paper only says that serving
costs in proportion to N·P.  The budget is always spent in full, so D follows from N and P, and two axes remain: log N,
measured from the largest N allowed (which may depend on P, where the memory that serves the model is limited), and P.

On them the loss is smooth but, with damage from quantization, not convex; the search is a grid that is drawn ever
closer around its lowest point, for all replicates of a fit at once.  That costs a few hundred thousand evaluations of
the formula, a fraction of a second, and has no starting point to be wrong about.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptq_eval.laws.n_eff import COST_PER_BIT

SERVING = COST_PER_BIT / 3
"""FLOPs at 16 bits that one parameter, one served token and one bit cost."""
FEWEST, MOST = 1e2, 1e18
"""Parameters between which N is searched."""
BITS = (1.0, 32.0)
"""Training precisions between which P is searched."""

_COARSE, _FINE, _ROUNDS = (140, 46), 13, 14

Loss = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""loss(N, D, P) in nats per token, each argument [replicates or 1, n or 1, m or 1]; returns [replicates, n, m]."""


@dataclass(frozen=True)
class Budget:
    """What may be spent: `compute` in operations at 16 bits, on training and on serving `served` tokens."""

    compute: float
    served: float = 0.0
    per_served: float = SERVING

    def serving(self, N: Any, serve: Any) -> Any:
        """What serving costs a model of N parameters held at `serve` bits."""
        return self.per_served * self.served * N * serve

    def tokens(self, N: Any, P: Any, serve: Any) -> Any:
        """D that the rest of the budget buys when training at P bits; not positive where nothing is left."""
        return (self.compute - self.serving(N, serve)) / (COST_PER_BIT * N * P)


@dataclass(frozen=True)
class Optimum:
    """The lowest loss in nats per token and where it lies, each [replicates]; `edge` names, for the first replicate,
    the ends of the search that it touches ("P low", "P high", "N low", "N high"), fixed axes left out."""

    N: np.ndarray
    D: np.ndarray
    P: np.ndarray
    loss: np.ndarray
    edge: tuple[str, ...]


def optimum(
    loss: Loss,
    budget: Budget,
    *,
    N: float | None = None,
    P: float | tuple[float, float] = BITS,
    serve: float | None = None,
    memory: float | None = None,
) -> Optimum:
    """Where `loss` is least under `budget`.

    N: the number of parameters where it is given.  P: the training precision, or the range to search.  serve: the bits
    in which the model is held when it serves; None, as trained.  memory: the most bytes its weights may then take,
    N·serve/8.  Every entry is infinite or NaN where the budget buys no token.
    """

    def place(u: np.ndarray, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        held = bits if serve is None else np.full_like(bits, serve)
        largest = np.minimum(MOST, np.inf if memory is None else 8 * memory / held)
        n = np.exp(u) * (largest if N is None else N)
        return n, budget.tokens(n, bits, held)

    def objective(u: np.ndarray, bits: np.ndarray) -> np.ndarray:
        n, d = place(u, bits)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            value = loss(n, np.where(d > 0, d, np.nan), bits)
        return np.where(np.isfinite(value), value, np.inf)

    cap = MOST if memory is None else min(MOST, 8 * memory / (serve or BITS[0]))
    sizes = (0.0, 0.0) if N is not None else (min(np.log(FEWEST / cap), 0.0), 0.0)
    precisions = (float(P), float(P)) if isinstance(P, (int, float)) else P
    (u, bits), value, edges = lowest(objective, [sizes, precisions])
    n, d = place(u, bits)
    names = (("N low", "N high"), ("P low", "P high"))
    touched = tuple(pair[end] for pair, end in zip(names, edges) if end is not None)
    known = np.isfinite(value)
    blank = [np.where(known, x, np.nan) for x in np.broadcast_arrays(n, d, bits)]
    return Optimum(*blank, loss=value, edge=touched)


def lowest(
    objective: Callable[[np.ndarray, np.ndarray], np.ndarray], box: list[tuple[float, float]]
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, list[int | None]]:
    """The least value of `objective` on a rectangle, for every replicate.

    objective(x, y) takes [r, n, 1] and [r, 1, m], r being 1 or the number of replicates; it returns [replicates, n, m].
    Returns the coordinates and the values, each [replicates], and for each axis the end (0 or 1) at which the first
    replicate lies, or None.  An axis whose ends coincide is fixed.
    """
    ends = np.array(box, float)
    low, high = ends[:, 0][None], ends[:, 1][None]
    counts, at, value = _COARSE, low, np.full(1, np.inf)
    for _ in range(_ROUNDS):
        counts = [1 if a == b else n for (a, b), n in zip(box, counts)]
        axes = [low[:, [i]] + (high - low)[:, [i]] * np.linspace(0, 1, n) for i, n in enumerate(counts)]
        values = objective(axes[0][:, :, None], axes[1][:, None, :])
        flat = values.reshape(len(values), -1)
        best = flat.argmin(axis=1)
        rows, value = np.arange(len(flat)), flat.min(axis=1)
        places = np.unravel_index(best, values.shape[1:])
        at = np.column_stack([np.broadcast_to(x, (len(flat), x.shape[1]))[rows, k] for x, k in zip(axes, places)])
        margin = 2 * (high - low) / np.maximum(np.array(counts) - 1, 1)
        low, high = np.maximum(at - margin, ends[:, 0]), np.minimum(at + margin, ends[:, 1])
        counts = (_FINE, _FINE)
    near = 1e-6 * (ends[:, 1] - ends[:, 0])
    touched: list[int | None] = [
        None if a == b else 0 if x - a <= tolerance else 1 if b - x <= tolerance else None
        for (a, b), x, tolerance in zip(box, at[0], near)
    ]
    return (at[:, 0], at[:, 1]), value, touched
