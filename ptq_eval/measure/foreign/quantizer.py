"""A backend's method in the place of a quantizer: `gptqmodel:gptq` beside `gptq`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ptq_eval import plugins
from ptq_eval.backends.base import Backend, Cell, Method
from ptq_eval.backends.environments import backend_of, distrusted, place_of, status_of
from ptq_eval.errors import BackendError, NumberFormatError, PtqEvalError
from quantizers import (
    ALL_FORMATS,
    LayerStats,
    QuantizedWeight,
    Quantizer,
    Scheme,
    UnknownOptionError,
    get_quantizer,
)


@dataclass(frozen=True, eq=False)
class Foreign(Quantizer):
    """One method of a backend.  It quantizes whole models in a process of its own (`measure.foreign.handover`)."""

    backend: Backend
    method: str
    formats = ALL_FORMATS  # what it cannot do becomes a failed record with the reason

    def __post_init__(self) -> None:
        own = self._method
        status = status_of(self.backend)
        facts = {
            "name": f"{self.backend.name}:{self.method}",
            "version": status.version or self.backend.requirements[0].rpartition("=")[2],
            "needs_stats": own.calibration != "none",
            "default_calibration": own.calibration,
        }
        for name, value in facts.items():
            object.__setattr__(self, name, value)

    @property
    def _method(self) -> Method:
        return self.backend.methods[self.method]

    @property
    def real_zeros(self) -> bool:
        """Whether zero points are numbers, not codes."""
        return self._method.real_zeros

    def schemes(self, asked: Sequence[Scheme], narrowest: int) -> list[Scheme]:
        """The schemes to measure where a run asks for these: the method's own, or all that are asked for.

        The narrowest row of the models has `narrowest` columns.
        """
        own = self._method
        if own.scheme:
            return [Scheme.of(own.scheme, own.block(narrowest))]
        if len(own.bits) == 1:
            plain = [scheme for scheme in asked if scheme.format == "int"]
            one = plain[0] if plain else Scheme(own.bits[0])
            return [Scheme(own.bits[0], one.group_size, one.symmetric)]
        return list(asked)

    def cell(self, scheme: Scheme) -> Cell:
        """What the backend is asked to do."""
        return Cell(self.method, scheme.bits, scheme.group_size, scheme.symmetric, scheme.format)

    def refusal(self, scheme: Scheme, narrowest: int) -> str:
        """Why the method cannot do `scheme` with rows of at least `narrowest` columns; empty where it can."""
        if scheme.group_size is not None and scheme.group_size > narrowest:
            return f"{self.name} needs rows of at least {scheme.group_size} columns, and one has {narrowest}"
        reason = self._method.refusal(self.cell(scheme))
        return reason and f"{self.name} {reason}"

    def distrust(self) -> str:
        """Why the method is not trusted: what its conformance run found; empty if it passed, or was not run."""
        found = (distrusted(self.backend, self.version) or {}).get(self.method)
        if found is None:
            return ""
        remedy = f"`ptq-eval backends check {self.backend.name}` tries it again"
        return f"{self.name} failed its conformance run: {found.finding}, {found.message}; {remedy}"

    def fault(self, scheme: Scheme, narrowest: int) -> PtqEvalError | None:
        """The error of a run that asks for nothing but this, where it is known to be impossible before the run."""
        if why := self.refusal(scheme, narrowest):
            return NumberFormatError(
                why, got=scheme.name, remedy="`ptq-eval backends list` has what each method can do"
            )
        if why := self.distrust():
            return BackendError(why)
        try:
            place_of(self.backend.name)
        except BackendError as error:
            return error
        return None

    def options(self) -> dict[str, Any]:
        """None: a backend's methods are measured as the package sets them."""
        return {}

    def quantize(self, weight: Any, scheme: Scheme, stats: LayerStats | None = None) -> QuantizedWeight:
        """Not possible for one layer."""
        raise NotImplementedError(f"{self.name} quantizes whole models")


def method_of(name: str, **options: Any) -> Quantizer:
    """The quantizer `name` with `options`, or the method `backend:method`.

    Raises UnknownPluginError, and what `get_quantizer` raises.
    """
    full = plugins.quantizer_name(name)
    backend, colon, method = full.partition(":")
    if not colon:
        return get_quantizer(full, **options)
    for option in options:
        raise UnknownOptionError(f"{full} has no option {option!r}")
    return Foreign(backend_of(backend), method)
