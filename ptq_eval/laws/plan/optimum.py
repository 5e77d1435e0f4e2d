"""The best (N, D, P) that a budget buys, for any loss: a search, because no closed form covers all the cases.

    minimise L(N, D, P)   subject to   (6/16)·N·D·P + k·N·P_serve·T <= C    (Kumar et al., arXiv 2411.04330, eq. 5)

The cost is counted in operations at 16 bits: with P = 16 and nothing served it is the familiar 6·N·D.  T is the number
of tokens served, and k = 2/16 the forward share of the six operations; appendix E.3 of the paper only says that serving
costs in proportion to N·P.

The budget is the most that may be spent.  The loss of a model that is quantized falls with D up to D_crit and rises
from there, so at given N and P the best D is what the budget buys or D_crit, whichever is less.  Two axes remain, log N
and P, which `grid_search` takes care of, for all replicates of a fit at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptq_eval.config.plan import SERVE_COST
from ptq_eval.laws.calculator import FULL_BITS
from ptq_eval.laws.formulas.n_eff import COST_PER_BIT
from ptq_eval.laws.plan.grid_search import lowest

MIN_PARAMS, MAX_PARAMS = 1e2, 1e18
"""Ends of the range in which N is searched."""
BITS = (1.0, FULL_BITS)
"""Training precisions between which P is searched: no more than what degradation laws call full precision."""

Function = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""f(N, D, P), each argument [replicates or 1, n or 1, m or 1]; returns [replicates, n, m]."""
Turn = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""D_crit(N, P) in tokens, shaped likewise."""


@dataclass(frozen=True)
class Budget:
    """What may be spent: `compute` in operations at 16 bits, on training and on serving `served` tokens."""

    compute: float
    served: float = 0.0
    per_served: float = SERVE_COST

    def serving(self, N: Any, serve: Any) -> Any:
        """What serving costs a model of N parameters held at `serve` bits."""
        return self.per_served * self.served * N * serve

    def tokens(self, N: Any, P: Any, serve: Any) -> Any:
        """D that the rest of the budget buys when training at P bits; not positive where nothing is left."""
        return (self.compute - self.serving(N, serve)) / (COST_PER_BIT * N * P)

    def share(self, N: Any, D: Any, P: Any, serve: Any) -> Any:
        """Which part of the budget training on D tokens and serving take."""
        return (COST_PER_BIT * N * D * P + self.serving(N, serve)) / self.compute


@dataclass(frozen=True)
class Optimum:
    """The lowest loss in nats per token and its N, D and P, each [replicates]; `spent`, the share of the budget.

    `edge` names, for the first replicate, the ends of the search that it touches ("P low", "P high", "N low",
    "N high"), except on fixed axes; `stops`: it stops at D_crit, and the rest of the budget is not spent.
    """

    N: np.ndarray
    D: np.ndarray
    P: np.ndarray
    loss: np.ndarray
    spent: np.ndarray
    edge: tuple[str, ...]
    stops: bool


def optimum(
    loss: Function,
    budget: Budget,
    *,
    turn: Turn | None = None,
    N: float | None = None,
    P: float | tuple[float, float] = BITS,
    serve: float | None = None,
    memory: float | None = None,
) -> Optimum:
    """The least `loss` for at most `budget`.

    turn: D_crit, if the loss has one in D; no more tokens are taken.  N: the number of parameters, if it is fixed.
    P: the training precision, or the range to search.  serve: the bits of the weights when the model serves; None for
    as trained.  memory: the most bytes that these weights may take, N·serve/8.  Every entry is infinite or NaN if the
    budget buys no token.
    """

    def place(u: np.ndarray, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """N, D, the bits held, and whether D_crit is less than what the budget buys."""
        held = bits if serve is None else np.full_like(bits, serve)
        n = np.full_like(u, N) if N is not None else np.exp(u)
        if memory is not None and N is None:  # capped, so that a limit that is not reached changes no point
            n = np.minimum(n, 8 * memory / held)
        bought = budget.tokens(n, bits, held)
        best = np.inf if turn is None else turn(n, bits)
        return n, np.where(bought > 0, np.minimum(bought, best), np.nan), held, best < bought

    def objective(u: np.ndarray, bits: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            n, d, *_ = place(u, bits)
            value = loss(n, d, bits)
        return np.where(np.isfinite(value), value, np.inf)

    sizes = (0.0, 0.0) if N is not None else (float(np.log(MIN_PARAMS)), float(np.log(MAX_PARAMS)))
    precisions = (float(P), float(P)) if isinstance(P, (int, float)) else P
    (u, bits), value, edges = lowest(objective, [sizes, precisions])
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        n, d, held, stops = place(u[:, None, None], bits[:, None, None])
    names = (("N low", "N high"), ("P low", "P high"))
    touched = tuple(pair[end] for pair, end in zip(names, edges) if end is not None)
    n, d, p, held, stops = (x.reshape(len(value)) for x in np.broadcast_arrays(n, d, bits[:, None, None], held, stops))
    known = np.isfinite(value)
    places = (np.where(known, x, np.nan) for x in (n, d, p))
    share = np.where(known, budget.share(n, d, p, held), np.nan)
    return Optimum(*places, loss=value, spent=share, edge=touched, stops=bool(known[0] and stops[0]))
