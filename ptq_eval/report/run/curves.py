"""Fitted curves, computed by the laws themselves.

A law is found by its name among the installed plug-ins and asked to predict; no formula is repeated here.  A fit
without usable constants, or by a law that is no longer installed, gives no curve, and the figure shows points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ptq_eval import plugins
from ptq_eval.errors import UnknownPluginError
from ptq_eval.report.common.numbers import number


def predict(entry: Mapping[str, Any] | None, *, params: float, tokens: np.ndarray, bits: float) -> np.ndarray | None:
    """What a fitted law predicts at N = `params`, D = `tokens` [n] and `bits`: [n], nats per token, or None."""
    if entry is None:
        return None
    theta = {name: number((value or {}).get("value")) for name, value in (entry.get("parameters") or {}).items()}
    if not theta or not all(math.isfinite(value) for value in theta.values()):
        return None
    try:
        law = plugins.get("laws", str(entry.get("law")))()
    except UnknownPluginError:
        return None
    tokens = np.asarray(tokens, float)
    data = {"N": np.full_like(tokens, params), "D": tokens, "P": np.full_like(tokens, bits)}
    if not all(np.isfinite(data[name]).all() for name in law.columns):
        return None
    values = np.asarray(law.predict(theta, data), float)
    return values if np.isfinite(values).all() else None
