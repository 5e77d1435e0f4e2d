"""Versions of quantizers among records: their order, and which there are."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ptq_eval.records import Measurement


def order_of(version: str) -> list[tuple[int, str]]:
    """Versions by their numbers: "2" before "10", "1.9" before "1.10"."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d+|[^\d.]+", version)]


def versions(kept: Iterable[Measurement]) -> dict[str, list[str]]:
    """The versions of each quantizer among records, the oldest first."""
    found: dict[str, set[str]] = {}
    for measurement in kept:
        found.setdefault(measurement.trial.quantizer, set()).add(measurement.trial.quantizer_version)
    return {name: sorted(several, key=order_of) for name, several in found.items()}
