"""When the windows seen so far are enough: a variant ends once the paired error of δ is small compared with δ.

Windows are taken in a random order, the same for every variant and drawn from a seed, so that the first n of them are a
simple random sample of all.  After a minimum number of windows, and then at regular intervals, the rule looks at the
paired standard error of δ (`sampling`: windows of one document do not count as independent) and ends the variant when
it is at most `precision`·|δ|, or at most `floor` for a δ too close to zero to be known relatively.  The looks are at
fixed numbers of windows, independent of batches and free memory, and each variant is looked at alone: neither the
machine, nor the other variants, nor resuming changes where it ends.

Looking repeatedly favours moments at which the error happens to be small; the minimum number of windows limits that
(measured in `docs/decisions/0012-early-stop-and-memory.md`).  The full-precision model always sees all windows: δ of
every variant of the checkpoint is added to its loss (`results.table`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ptq_eval.sampling import Design, standard_error

FLOOR = 0.001
"""Nats per token: a tenth of a percent of perplexity."""


@dataclass(frozen=True)
class StopRule:
    """Stop at `precision` (relative) or `floor` (nats per token), after `fewest` windows, looking after `every` more.

    The field names are part of a trial's key.
    """

    precision: float
    floor: float = FLOOR
    fewest: int = 64
    every: int = 16
    seed: int = 0

    def order(self, windows: int) -> list[int]:
        """A permutation of `windows` indices: the order in which they are taken."""
        return np.random.default_rng(self.seed).permutation(windows).tolist()

    def chunks(self, windows: int) -> list[int]:
        """Numbers of windows between one look and the next."""
        first = min(self.fewest, windows)
        rest = windows - first
        return [first] + [min(self.every, rest - start) for start in range(0, rest, self.every)]

    def settled(
        self, before: Sequence[float], after: Sequence[float], tokens: int, design: Design | None = None
    ) -> bool:
        """Whether losses per window (nats, summed over `tokens` tokens) determine δ well enough.

        `design` says how all windows were drawn, in their original order; `after` holds the first of `order`.
        A loss that is not finite settles it too: no further window can change that.
        """
        difference = (np.asarray(after) - np.asarray(before[: len(after)])) / tokens
        if not np.isfinite(difference).all():
            return True
        seen = design.at(self.order(len(design.units))[: len(difference)]) if design is not None else None
        error = standard_error(difference, seen)
        return bool(error <= max(self.precision * abs(difference.mean()), self.floor))

    def to_dict(self) -> dict[str, Any]:
        """The fields, for a trial's key."""
        return asdict(self)
