"""How well a law describes its points, as values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

MAX_SCATTER = 10.0
"""No larger scatter is looked for, as a share of the prediction: there the law says nothing of the points."""


class Scatter(StrEnum):
    """What the scatter of a fit is."""

    WEIGHTS = "weights"  # a share of the prediction, estimated with the constants: the points are weighted by it
    RELATIVE = "relative"  # a share of the prediction; the weights are others
    RESPONSE = "response"  # in the unit of the response


@dataclass(frozen=True)
class BitsQuality:
    """How well a law describes the points of one bit-width: R² of the response about their own mean, the same weighted
    by 1/sigma², and the scatter, of the same kind as that of the whole fit."""

    bits: float
    n_points: int
    r2: float
    r2_weighted: float
    scatter: float

    def to_dict(self) -> dict[str, float | None]:
        """A JSON object."""
        return {name: finite_or_none(value) for name, value in vars(self).items()} | {"n_points": self.n_points}


def finite_or_none(value: float) -> float | None:
    """A float for JSON, which knows neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None
