"""Names and statements that all pages on backtests share."""

from __future__ import annotations

import math

from ptq_eval.laws.forecast.baselines import FORECAST
from ptq_eval.report.common.numbers import count

METHOD_NAMES = {
    FORECAST: "forecast",
    "staying": "δ stays as it is",
    "joint": "joint law (Kumar et al.)",
    "power": "power of D per bit-width",
}


def turn_text(low: float, value: float, high: float, level: float) -> str:
    """D_crit as a statement has it, in tokens: an interval, or "not before 40M"; what is open is not finite."""
    if not math.isfinite(high):
        return f"not before {count(low)} ({50 + 50 * level:g} %)"
    return f"{count(value) if math.isfinite(value) else 'open'} [{count(low)} to {count(high)}]"
