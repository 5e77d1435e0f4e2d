"""What a residual costs: squares, Huber, absolute values, in the response or in its logarithm.

    squared   ½r²                       Huber   ½r² up to |r| = k, then k(|r| − k/2)          lad   |r|

Squares are best where the noise is normal; Huber's loss (1964) keeps them for small residuals and stops single points
from deciding; least absolute deviation ("lad") fits the median and is what Huber's loss, divided by k, becomes for
small k.  With the prefix "log-" the residual is log y − log f: relative errors count, which is how loss curves are
usually fitted (Hoffmann et al., arXiv 2203.15556, section D.2: log-Huber with k = 1e-3).  "least-squares" is the plain
sum of squares, every point weighing the same whatever its size or its standard error.  A logarithm knows nothing
of values that are not positive; such points are dropped and counted, and of degradations, which may be negative, that
drops the lowest and keeps the highest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ptq_eval.config.fit import LOSSES as NAMES
from ptq_eval.errors import OptionError

PLAIN_SQUARES = "least-squares"
DEFAULT_DELTA = {"huber": 1.345, "log-huber": 1e-3}
"""1.345 standard deviations: 95 % efficient for normal noise.  1e-3 in log loss: Hoffmann et al."""


@dataclass(frozen=True)
class Loss:
    """A loss by its name, with Huber's threshold `k`: infinite for squares, 0 for absolute values."""

    name: str
    log: bool
    k: float

    @property
    def unweighted(self) -> bool:
        """Whether all points weigh the same unless a sigma is named."""
        return self.log or self.name == PLAIN_SQUARES

    def rho(self, r: np.ndarray) -> np.ndarray:
        """The cost of each residual."""
        return np.abs(r) if self.k == 0 else huber(r, self.k)

    def total(self, r: np.ndarray) -> np.ndarray:
        """The summed cost of each row of residuals [..., n]; infinite where one is not a number."""
        if self.k > 0:
            return self._sum(r if np.isinf(self.k) else np.clip(r, -self.k, self.k), r)
        total = np.abs(r).sum(-1)
        return np.where(np.isfinite(total), total, np.inf)

    def _sum(self, psi: np.ndarray, r: np.ndarray) -> np.ndarray:
        """Σ rho = Σ (psi·r − ½psi²), in two passes."""
        with np.errstate(invalid="ignore", over="ignore"):  # where a law overflows, the cost is infinite
            total = np.einsum("...n,...n->...", psi, r) - 0.5 * np.einsum("...n,...n->...", psi, psi)
        return np.where(np.isfinite(total), total, np.inf)

    def parts(self, r: np.ndarray, damping: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`total` of residuals [m, n]; and for each residual psi, the derivative of rho, and the weight of its square:
        one up to the threshold k, damping·k/|r| beyond, with `damping` [m] up to one.  Not for absolute values."""
        if np.isinf(self.k):
            return self._sum(r, r), r, np.ones_like(r)
        psi, size = np.clip(r, -self.k, self.k), np.abs(r)
        share = np.maximum(size <= self.k, np.minimum(damping, 1.0)[:, None])
        np.maximum(size, self.k, out=size)
        share *= np.divide(self.k, size, out=size)
        return self._sum(psi, r), psi, share

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Values of the response on the scale on which residuals are taken; NaN where there is no logarithm."""
        if not self.log:
            return values
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.log(values)


def make_loss(name: str, huber_delta: float | None = None) -> Loss:
    """The loss called `name`; `huber_delta` is Huber's threshold, in units of sigma.  OptionError if unknown."""
    if name not in NAMES:
        raise OptionError("unknown loss", got=repr(name), allowed=", ".join(NAMES))
    if huber_delta is not None and not huber_delta > 0:
        raise OptionError("huber_delta must be positive", got=huber_delta)
    if huber_delta is not None and name not in DEFAULT_DELTA:
        raise OptionError(f"the loss {name} has no huber_delta", got=huber_delta, allowed=", ".join(DEFAULT_DELTA))
    kind = name.removeprefix("log-")
    k = {"squared": math.inf, "lad": 0.0, PLAIN_SQUARES: math.inf}.get(
        kind, huber_delta or DEFAULT_DELTA.get(name, math.nan)
    )
    return Loss(name, name != kind, float(k))


def huber(r: np.ndarray, k: float) -> np.ndarray:
    """½r² up to |r| = k, then k(|r| − k/2); k may be infinite.  Huber 1964."""
    if np.isinf(k):
        return 0.5 * np.square(r)
    size = np.abs(r)
    inside = np.minimum(size, k)
    return inside * (size - 0.5 * inside)


def huber_weight(r: np.ndarray, k: float) -> np.ndarray:
    """The weight min(1, k/|r|) that turns a squared residual into Huber's."""
    if np.isinf(k):
        return np.ones_like(r)
    size = np.abs(r)
    return np.divide(k, np.maximum(size, k, out=size), out=size)
