"""What single tokens say of a variant: the spread behind the mean loss and the mean divergence.

The definitions are those that llama.cpp's perplexity tool documents for `--kl-divergence`: Δp is the probability of the
true next token after quantization minus before; percentiles are over tokens, between two of them by linear
interpolation; the correlation is Pearson's, of the tokens' losses before and after.  llama.cpp scores the second half
of a window only, takes tokens as independent for its errors, and has the full-precision logits rounded to 16 bits; here
all tokens of a window but the first count, errors are of windows, and nothing is rounded before the percentiles but to
float32.

A token's three numbers are kept, in the order of scoring, until its variant's record is made of them; the record keeps
sums per window, from which errors follow, and the percentiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

PERCENTILES = (0, 0.1, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9, 100)
_DIGITS = 7
"""Of numbers in a record: as many as float32 has."""


def per_token(kl: Tensor, before: Tensor, after: Tensor, windows: int) -> list[bytes]:
    """The divergence and both losses (nats) of all tokens [tokens], for each of so many windows."""
    values = torch.stack([kl, before, after]).float().cpu()
    return [window.tobytes() for window in values.view(3, windows, -1).transpose(0, 1).numpy()]


def summary(windows: Sequence[bytes]) -> dict[str, Any]:
    """What a record keeps of finite numbers `per_token`.

    Percentiles of the tokens' "kl" and "delta_p", {per cent: value} each; "loss_correlation", None where the losses of
    all tokens are the same; and per window the sums over its tokens of Δp and of its square, "delta_p_sums" and
    "delta_p2_sums".
    """
    kl, before, after = np.frombuffer(b"".join(windows), np.float32).reshape(len(windows), 3, -1).swapaxes(0, 1)
    change = np.exp(-after, dtype=np.float64) - np.exp(-before, dtype=np.float64)
    return {
        "kl": _percentiles(kl),
        "delta_p": _percentiles(change),
        "loss_correlation": _correlation(before, after),
        "delta_p_sums": _rounded(change.sum(1)),
        "delta_p2_sums": _rounded((change**2).sum(1)),
    }


def _percentiles(values: np.ndarray) -> dict[str, float]:
    ordered = np.sort(values.ravel().astype(np.float32))
    found = np.interp(np.asarray(PERCENTILES) / 100 * (len(ordered) - 1), np.arange(len(ordered)), ordered)
    return {f"{percent:g}": value for percent, value in zip(PERCENTILES, _rounded(found))}


def _correlation(before: np.ndarray, after: np.ndarray) -> float | None:
    x, y = (values.ravel() - values.mean(dtype=np.float64) for values in (before, after))
    size = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / size if size > 0 else None


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{_DIGITS}g}") for value in values]
