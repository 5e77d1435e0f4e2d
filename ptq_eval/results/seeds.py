"""Runs that differ in their seed alone, side by side: how much delta changes from one seed to the next.

Runs of one family (`checkpoints.families`) with the same N are compared at checkpoints of the same D, one configuration
and bit-width at a time.  The standard deviation between them is a part of the noise floor of each: another seed
explains a difference in delta as little as another rounding does.  With two runs it rests on one difference.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ptq_eval.records import Checkpoint
from ptq_eval.results.draws import CONFIGURATION, widen_floor

_SAME = (*CONFIGURATION, "bits", "tokens", "params")


def add_seeds(rows: Iterable[tuple[Checkpoint, dict[str, Any]]]) -> None:
    """Add `seeds` and `seed_sd`, and widen the noise floor, where a table has several runs of one family."""
    groups: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = {}
    for checkpoint, row in rows:
        if checkpoint.family and checkpoint.tokens is not None and np.isfinite(row.get("delta", np.nan)):
            group = groups.setdefault((checkpoint.family, *(row.get(name) for name in _SAME)), {})
            group.setdefault(checkpoint.weights_sha or checkpoint.run, []).append(row)
    for group in groups.values():
        if len(group) > 1:
            spread = float(np.std([own[0]["delta"] for own in group.values()], ddof=1))
            for row in (row for own in group.values() for row in own):
                row |= {"seeds": len(group), "seed_sd": spread}
                widen_floor(row, spread)
