"""What a plan can be asked: the options of `ptq-eval plan`, each declared once (see `options`).

Every formula takes raw parameters, tokens, operations and bytes.  A bare "1" for a billion is the commonest mistake
and would be answered with nonsense, so counts outside a plausible range are refused.  How options go together is
checked by `laws.plan.question`; this file imports none of the laws, so that help is printed at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ptq_eval import units
from ptq_eval.config.options import MEMORY, NUMBER, PARAMS, TEXT, TOKENS, Kind, Options, Plausible, option
from ptq_eval.errors import BitsError, OptionError, PlanError, PtqEvalError

FULL_BITS = 16.0
"""From this training precision on a model counts as trained in full precision."""
SERVED_BITS = (1.0, FULL_BITS)
SERVE_COST = 2 / 16
"""FLOPs at 16 bits per served token, parameter and bit: two of the six that a training token costs."""


def _count(
    help: str,
    metavar: str,
    plausible: Plausible,
    *,
    unit: units.Unit = units.COUNT,
    default: float | None = None,
    unset: str = "",
) -> Any:
    """An option that is a plausible count, or its default."""

    def read(value: Any, *, name: str, error: type[PtqEvalError]) -> float:
        found = units.read_number(value, unit, name=name, error=error)
        if found <= 0 and found != default:
            raise error(f"{name} must be positive", got=value, remedy=f"{name} {plausible.example}")
        if found != default:
            plausible.require(found, value, name, error)
        return found

    return option(default, f"{help}, such as {plausible.example}.", Kind(read, metavar), unset=unset)


def _runtime(what: str) -> Any:
    """An option that is a precision of what exists only while a model is served."""
    low, high = SERVED_BITS
    help = f"Precision of {what} when served; needs --fit of a run that quantized them."
    bounds: dict[str, Any] = {"low": low, "high": high, "metavar": "B", "unset": "full precision", "error": BitsError}
    return option(None, help, NUMBER, **bounds)


DEFAULT_PRESET = "KUMAR_2024"


@dataclass(frozen=True)
class SourceConfig(Options):
    """Where the constants of a plan are from: a fit in an output folder, or published ones.  Raises OptionError."""

    fit: str | None = option(None, "Plan from the fit in this output folder.", TEXT, metavar="OUT")
    preset: str | None = option(
        None,
        "Plan from published constants, of several presets together.",
        TEXT,
        metavar="NAME,…",
        unset=DEFAULT_PRESET,
    )
    offsets: bool = option(True, "Use the offsets n in N_eff.", off="--no-offsets")
    quantizer: str | None = option(None, "The quantizer to plan for, if OUT holds several.", TEXT, metavar="NAME")
    number_format: str | None = option(None, "The number format to plan for, if each has a law.", TEXT, metavar="NAME")
    endings: tuple[str, ...] = option(
        (), "How this run may end, as `probe` or `average` measured it in OUT.", TEXT, many=True, metavar="OUT,…"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fit is not None and self.preset is not None:
            got = f"{self.fit} and {self.preset}"
            raise OptionError("--fit and --preset exclude each other", got=got, remedy="give one of them")
        for flag, value in (("--quantizer", self.quantizer), ("--number-format", self.number_format)):
            if self.fit is None and value is not None:
                what = f"{flag} chooses among the fits of --fit; presets have none"
                raise OptionError(what, got=value, remedy=f"--fit OUT, or no {flag}")
        if self.fit is not None and not self.offsets:
            what = "--no-offsets belongs to presets: a fit has the offsets that were fitted"
            raise OptionError(what, got=self.fit, remedy="no --no-offsets, or fit again: --law-option offsets=false")


@dataclass(frozen=True)
class PlanConfig(Options):
    """N in parameters, D and served tokens in tokens, losses in nats per token, the budget in FLOPs at 16 bits, memory
    in bytes, precisions in bits, formats as "E4M3", `group_size` weights per scale.  None: free, or not asked.

    Raises UnitsError, BitsError, PlanError or OptionError.
    """

    params: float | None = _count("Parameters", "N", PARAMS)
    tokens: float | None = _count("Training tokens", "D", TOKENS)
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
    activation_bits: float | None = _runtime("activations")
    kv_bits: float | None = _runtime("keys and values")
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
        Plausible(1e6, 1e40, "", "petaflop/s-days, or an exponent", "1e21"),
        unset="6·N·D, where both are given",
    )
    served_tokens: float = _count(
        "Tokens to serve, from the same budget", "T", Plausible(1e3, 1e22, "B", "billions", "1T"), default=0.0
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
    memory: float | None = _count("The most memory that served weights may take", "BYTES", MEMORY, unit=units.BYTES)
