"""The columns about single tokens: percentiles of the divergence and of Δp, its mean and root mean square.

Δp is the probability of the true next token after quantization minus before (`measure.tokens`).  Its mean and root mean
square have errors over windows, the latter's to first order; percentiles are exact for the tokens that were scored, and
have none.
"""

from __future__ import annotations

import math
from typing import Any

from ptq_eval.records import Measurement
from ptq_eval.sampling import Design, mean_and_error

PERCENTILES = {
    "kl": {"50": "kl_median", "99": "kl_p99", "99.9": "kl_p999", "100": "kl_max"},
    "delta_p": {"1": "delta_p_p1", "5": "delta_p_p5", "95": "delta_p_p95", "99": "delta_p_p99"},
}
"""Columns by what they are percentiles of, and of how many per cent; records have more of them."""
COLUMNS = (
    *PERCENTILES["kl"].values(),
    *("delta_p", "delta_p_se", "delta_p_rms", "delta_p_rms_se"),
    *PERCENTILES["delta_p"].values(),
    "loss_correlation",
)


def of_tokens(m: Measurement, design: Design | None) -> dict[str, Any]:
    """The values of `COLUMNS` of a quantized measurement; none in records of earlier versions."""
    if not m.tokens:
        return {}
    row = {name: m.tokens[of][percent] for of, names in PERCENTILES.items() for percent, name in names.items()}
    row["delta_p"], row["delta_p_se"] = mean_and_error(m.tokens["delta_p_sums"], m.n_tokens, design)
    square, error = mean_and_error(m.tokens["delta_p2_sums"], m.n_tokens, design)
    row["delta_p_rms"] = math.sqrt(square)
    row["delta_p_rms_se"] = error / (2 * row["delta_p_rms"]) if square > 0 else 0.0
    correlation = m.tokens["loss_correlation"]
    return row if correlation is None else {**row, "loss_correlation": correlation}
