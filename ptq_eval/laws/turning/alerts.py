"""When a team that is still training should look: more data already harms, or its turning point is near."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ptq_eval.laws.quality import finite_or_none
from ptq_eval.laws.turning.verdict import VerdictKind


@dataclass(frozen=True)
class Alert:
    """D_crit of one run at one bit-width is observed, or its interval begins near the present D = `tokens`.

    low, value and high are its interval at `level`; what is open is NaN.
    """

    kind: VerdictKind
    run: str
    quantizer: str
    bits: float
    params: float
    tokens: float
    low: float
    value: float
    high: float
    level: float

    @property
    def place(self) -> tuple[str, str, str, float]:
        """What this alert is about; the same is not worth saying twice."""
        return self.kind.value, self.run, self.quantizer, self.bits

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; what is open becomes None."""
        found = asdict(self)
        return {name: finite_or_none(value) if isinstance(value, float) else value for name, value in found.items()}


def alerts(entries: Iterable[Mapping[str, Any]], margin: float, bits: Collection[float] = ()) -> list[Alert]:
    """The alerts of "critical_tokens" in a fit: those observed, and forecasts that begin before `margin` times D.

    An interval without an upper end says when no turn comes, not that one does, so it raises no alert.  bits: those
    that matter (empty: all).
    """
    found = []
    for entry in entries:
        kind, answer = VerdictKind(entry["verdict_kind"]), entry["answer"]
        if kind not in (VerdictKind.OBSERVED, VerdictKind.FORECAST) or (bits and entry["bits"] not in bits):
            continue
        ends = {name: math.nan if answer[name] is None else float(answer[name]) for name in ("low", "value", "high")}
        if kind is VerdictKind.FORECAST and not ends["low"] <= margin * entry["largest_tokens"]:
            continue
        found.append(
            Alert(
                kind,
                entry["run"],
                entry["quantizer"],
                entry["bits"],
                entry["params"],
                entry["largest_tokens"],
                **ends,
                level=answer["level"],
            )
        )
    return found
