"""Contamination between calibration and evaluation windows: the exact n-grams of tokens they share.

A quantizer that is calibrated on its evaluation text looks better than it is.  Every n-gram of an evaluation window
that also occurs in a calibration window is counted.  Thirty-two tokens are about twenty words of prose: they do not
recur by chance, but in licences and boilerplate.  Paraphrases are not detected, nor is text under another tokenizer.

N-grams are compared by rank rather than by hash: equal n-grams of length 2k are equal pairs of ranks of length k, so
log2(n) sorts number all n-grams without collisions (the doubling of Karp, Miller and Rosenberg 1972, "Rapid
identification of repeated patterns in strings, trees and arrays").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ptq_eval.corpora.windows import Windows

FLAG_ABOVE = 0.01
"""Share of an evaluation text's n-grams above which it is flagged."""

Use = Literal["calibration", "training"]
_FAVOURED: dict[Use, str] = {"calibration": "calibrated methods", "training": "what is trained"}


@dataclass(frozen=True)
class Overlap:
    """Shares, from 0 to 1, of the evaluation windows with an n-gram from calibration, and of their n-grams."""

    share_of_windows: float
    share_of_ngrams: float
    flagged: bool
    message: str


def overlap(calibration: Windows, evaluation: Windows, n: int = 32, *, use: Use = "calibration") -> Overlap:
    """How much of `evaluation` occurs in `calibration`, counted in n-grams of `n` tokens (or of a shorter window).

    Flagged if both come from the same text, or if more than 1 % of the evaluation n-grams occur in calibration.  Both
    must have been made with the same tokenizer.  `use` is what the other text is for.
    """
    n = min(n, calibration.seq_len, evaluation.seq_len)
    shared = _shared(calibration.ids, evaluation.ids, n)
    windows, ngrams = float(shared.any(axis=1).mean()), float(shared.mean())
    same = calibration.spec == evaluation.spec or calibration.text_digest == evaluation.text_digest
    found = (
        f"{ngrams:.2%} of the {n}-token sequences of the evaluation text ({evaluation.spec}), "
        f"in {windows:.1%} of its windows, also occur in the {use} text ({calibration.spec})"
    )
    if same:
        message = f"{use} and evaluation are drawn from the same text; {found}"
    elif ngrams > FLAG_ABOVE:
        message = f"{use} and evaluation overlap, which can favour {_FAVOURED[use]}: {found}"
    else:
        message = found
    return Overlap(windows, ngrams, same or ngrams > FLAG_ABOVE, message)


def _shared(calibration: np.ndarray, evaluation: np.ndarray, n: int) -> np.ndarray:
    """Which evaluation n-grams [windows, seq_len − n + 1] occur among the calibration n-grams."""
    ranks = [calibration.astype(np.int64), evaluation.astype(np.int64)]
    length = 1
    while length < n:
        step = min(length, n - length)  # the last pair of halves may overlap
        ranks = _ranked([_pairs(rows, step, _limit(ranks)) for rows in ranks])
        length += step
    return np.isin(ranks[1], ranks[0])


def _limit(ranks: list[np.ndarray]) -> int:
    return 1 + max(int(rows.max()) for rows in ranks)


def _pairs(rows: np.ndarray, step: int, limit: int) -> np.ndarray:
    """One number for each pair (rank here, rank `step` tokens later); below limit², so below 2^63."""
    return rows[:, :-step] * limit + rows[:, step:]


def _ranked(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Both arrays with their values replaced by ranks: equal if and only if the values were."""
    flat = np.concatenate([rows.ravel() for rows in arrays])
    ranks = np.unique(flat, return_inverse=True)[1].reshape(-1)
    first = arrays[0].size
    return [ranks[:first].reshape(arrays[0].shape), ranks[first:].reshape(arrays[1].shape)]
