"""Calling a method that may fail in any way: what it gives is checked, and what it does wrong is its own failure alone.

A plug-in gets copies of the weights and statistics, so that it cannot change the model or what other methods see.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from ptq_eval.measure.memory import out_of_memory
from quantizers import LayerStats, QuantizationError, QuantizedWeight, Quantizer, Scheme

T = TypeVar("T")
_MAX_MESSAGE = 300
"""Characters of another package's message."""


class BrokenMethodError(Exception):
    """A method raised what no method should, or gave what is no quantized layer."""


def solved(
    quantizer: Quantizer, weights: Sequence[Tensor], schemes: Sequence[Scheme], stats: LayerStats | None
) -> list[list[QuantizedWeight] | QuantizationError | BrokenMethodError]:
    """Each scheme's layers or failure; if quantizing them together fails, each is tried alone."""
    try:
        return [*guarded(quantizer, lambda: _checked(quantizer, weights, schemes, stats))]
    except (QuantizationError, BrokenMethodError) as error:
        if len(schemes) == 1:
            return [error]
    return [outcome for scheme in schemes for outcome in solved(quantizer, weights, [scheme], stats)]


def guarded(quantizer: Quantizer, call: Callable[[], T]) -> T:
    """What `call` gives.  Raises QuantizationError, and BrokenMethodError for anything else but a lack of memory."""
    try:
        return call()
    except (QuantizationError, BrokenMethodError):
        raise
    except (Exception, SystemExit) as error:
        if _is_own(quantizer) and (out_of_memory(error) or isinstance(error, SystemExit)):
            raise
        raise BrokenMethodError(f"{quantizer.name} raised {_said(error)}") from error


def _checked(
    quantizer: Quantizer, weights: Sequence[Tensor], schemes: Sequence[Scheme], stats: LayerStats | None
) -> list[list[QuantizedWeight]]:
    own = _is_own(quantizer)
    given = weights if own else [weight.clone() for weight in weights]
    found = quantizer.quantize_grid(given, schemes, stats if own else copy.deepcopy(stats))
    if len(found) != len(schemes) or any(len(layers) != len(weights) for layers in found):
        raise BrokenMethodError(f"{quantizer.name} gave another number of layers than it was asked for")
    for scheme, layers in zip(schemes, found):
        for weight, layer in zip(weights, layers):
            if not isinstance(layer, QuantizedWeight):
                raise BrokenMethodError(f"{quantizer.name} gave a {type(layer).__name__}, not a QuantizedWeight")
            if layer.codes.shape != weight.shape:
                shapes = f"{list(layer.codes.shape)} instead of {list(weight.shape)}"
                raise BrokenMethodError(f"{quantizer.name} gave codes of another shape: {shapes}")
            if layer.scheme != scheme:
                names = " instead of ".join(
                    f"{one.name}, group_size {one.group_size}" for one in (layer.scheme, scheme)
                )
                raise BrokenMethodError(f"{quantizer.name} gave a layer of another scheme: {names}")
    return found


def _is_own(quantizer: Quantizer) -> bool:
    """Whether a method is of this package."""
    return type(quantizer).__module__.partition(".")[0] == "quantizers"


def _said(error: BaseException) -> str:
    """An error with its message and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:_MAX_MESSAGE]}{where}"
