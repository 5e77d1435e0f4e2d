"""Post-training quantizers of weight matrices: pure functions on torch tensors, and nothing but torch.

    gptq = get_quantizer("gptq", act_order=True)
    gptq.quantize(weight, Scheme(bits=4), LayerStats.from_inputs(x)).dequantize()

Methods, built-in ones included, are found through the entry-point group `ptq_eval.quantizers`, so another package can
add one without any change here.  `quantizers.testing` has the tests that it should pass.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from quantizers.base import ALL_FORMATS, QuantizedWeight, Quantizer
from quantizers.errors import (
    BitsRangeError,
    FormatError,
    GroupSizeRangeError,
    MissingStatsError,
    OptionValueError,
    QuantizationError,
    ShapeError,
    UnknownOptionError,
    UnknownQuantizerError,
    suggestion,
)
from quantizers.gaussian import gaussian_mse
from quantizers.options import option
from quantizers.scheme import Scheme
from quantizers.stats import LayerStats

__all__ = [
    "ALL_FORMATS",
    "BitsRangeError",
    "FormatError",
    "GroupSizeRangeError",
    "LayerStats",
    "MissingStatsError",
    "OptionValueError",
    "QuantizationError",
    "QuantizedWeight",
    "Quantizer",
    "Scheme",
    "ShapeError",
    "UnknownOptionError",
    "UnknownQuantizerError",
    "available_quantizers",
    "gaussian_mse",
    "get_quantizer",
    "option",
]

ENTRY_POINT_GROUP = "ptq_eval.quantizers"


def available_quantizers() -> dict[str, EntryPoint]:
    """The installed quantizers, {name: entry point}, sorted by name; none is imported."""
    return dict(_points())


@cache
def _points() -> dict[str, EntryPoint]:
    points = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    return dict(sorted(points.items()))


def get_quantizer(name: str, **options: Any) -> Quantizer:
    """The quantizer `name` with `options`, for example `get_quantizer("gptq", damping=0.01)`.

    Raises UnknownQuantizerError, UnknownOptionError (each with the nearest known name) or OptionValueError.
    """
    installed = available_quantizers()
    if name not in installed:
        known = ", ".join(installed) or "none"
        raise UnknownQuantizerError(f"no quantizer {name!r}; installed: {known}{suggestion(name, installed)}")
    cls = installed[name].load()
    allowed = [spec.name for spec in dataclasses.fields(cls)]
    for given in options:
        if given not in allowed:
            known = ", ".join(allowed) or "none"
            hint = suggestion(given, allowed)
            raise UnknownOptionError(f"{name} has no option {given!r}; its options: {known}{hint}")
    return cls(**options)
