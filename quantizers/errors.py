"""Errors: a wrong argument is a ValueError, a numerical failure a QuantizationError.

A sweep depends on the distinction: a ValueError is the caller's mistake and ends the run, while a QuantizationError
concerns one layer, which then stays in full precision and is counted in the record.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QuantizationError(RuntimeError):
    """The numbers do not allow this layer to be quantized; the arguments are not at fault."""


class BitsRangeError(ValueError):
    """Bits outside 2 to 8."""


class GroupSizeRangeError(ValueError):
    """Group size below 1, or larger than a row."""


class FormatError(ValueError):
    """A number format other than the known ones."""


class ShapeError(ValueError):
    """A weight that is not a floating-point matrix, or statistics of another width."""


class MissingStatsError(ValueError):
    """The method needs statistics of the layer's inputs, and none were passed."""


class SlowKernelWarning(UserWarning):
    """The compiler of the inner loops cannot be imported, so they run in torch."""


class UnknownQuantizerError(ValueError):
    """No quantizer of that name is installed."""


class UnknownOptionError(ValueError):
    """The quantizer has no option of that name."""


class OptionValueError(ValueError):
    """The option exists, but does not allow this value."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name nearest to `name`, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
