"""What a plan can be asked: the options of `ptq-eval plan`, each declared once (see `options`).

Every formula takes raw parameters, tokens, operations and bytes.  A bare "1" for a billion is the commonest mistake
and would be answered with nonsense, so counts outside a plausible range are refused.  How options go together is
checked by `laws.plan.question`; this file imports none of the laws, so that help is printed at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ptq_eval import units
from ptq_eval.config.options import NUMBER, TEXT, Kind, Options, option
from ptq_eval.errors import BitsError, PlanError, PtqEvalError, UnitsError

FULL_BITS = 16.0
"""From this training precision on a model counts as trained in full precision."""
SERVED_BITS = (1.0, FULL_BITS)
SERVE_COST = 2 / 16
"""FLOPs at 16 bits per served token, parameter and bit: two of the six that a training token costs."""


def _count(
    help: str,
    metavar: str,
    bounds: tuple[float, float],
    example: str,
    mistaken: str,
    *,
    unit: units.Unit = units.COUNT,
    default: float | None = None,
    unset: str = "",
) -> Any:
    """An option that is a count within `bounds`, or its default; a smaller one looks like a number of `mistaken`."""
    least, largest = bounds

    def read(value: Any, *, name: str, error: type[PtqEvalError]) -> float:
        found = units.read_number(value, unit, name=name, error=error)
        if found <= 0 and found != default:
            raise error(f"{name} must be positive", got=value, remedy=f"{name} {example}")
        if not least <= found <= largest and found != default:
            why = f"looks like a number of {mistaken}" if found < least else "is too large"
            allowed = f"{least:.0e} to {largest:.0e}"
            raise UnitsError(f"{name} {why}", got=value, allowed=allowed, remedy=f"{name} {example}")
        return found

    return option(default, f"{help}, such as {example}.", Kind(read, metavar), unset=unset)


@dataclass(frozen=True)
class PlanConfig(Options):
    """N in parameters, D and served tokens in tokens, losses in nats per token, the budget in FLOPs at 16 bits, memory
    in bytes, precisions in bits, formats as "E4M3", `group_size` weights per scale.  None: free, or not asked.

    Raises UnitsError, BitsError, PlanError or OptionError.
    """

    params: float | None = _count("Parameters", "N", (1e3, 1e16), "1B", "millions or billions")
    tokens: float | None = _count("Training tokens", "D", (1e3, 1e19), "20B", "billions")
    serve_bits: tuple[float, ...] = option(
        (),
        "Precisions to serve at.",
        NUMBER,
        many=True,
        low=SERVED_BITS[0],
        high=SERVED_BITS[1],
        metavar="B,…",
        unset="those that were fitted",
        error=BitsError,
    )
    serve_format: tuple[str, ...] = option(
        (), "Floating-point formats to train and serve in, such as E4M3.", TEXT, many=True, metavar="ExMy,…"
    )
    group_size: float | None = option(None, "Weights that share one scale, such as 128.", NUMBER, above=1, metavar="G")
    max_loss: float | None = option(
        None, "Find the fewest bits that add less than this, in nats per token.", NUMBER, above=0, error=PlanError
    )
    budget: float | None = _count(
        "The most FLOPs, counted at 16 bits",
        "C",
        (1e6, 1e40),
        "1e21",
        "petaflop/s-days, or an exponent",
        unset="6·N·D, where both are given",
    )
    served_tokens: float = _count(
        "Tokens to serve, from the same budget", "T", (1e3, 1e22), "1T", "billions", default=0.0
    )
    per_served: float = option(
        SERVE_COST,
        "FLOPs at 16 bits per served token, parameter and bit.",
        above=0,
        flag="--serve-cost",
        metavar="K",
        shown="2/16",
        error=PlanError,
    )
    memory: float | None = _count(
        "The most memory that served weights may take", "BYTES", (1e3, 1e18), "8GB", "gigabytes", unit=units.BYTES
    )
