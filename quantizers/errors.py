"""What can go wrong: a wrong argument is a ValueError, a numerical failure a QuantizationError.

The distinction matters to a sweep: a ValueError is a mistake of the caller and ends the run, a
QuantizationError concerns one layer, which then stays in full precision and is counted in the record.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QuantizationError(RuntimeError):
    """This layer cannot be quantized from these numbers (not a mistake in the arguments)."""


class BitsRangeError(ValueError):
    """Bits outside 2 to 8."""


class GroupSizeRangeError(ValueError):
    """Group size below 1, or larger than a row."""


class FormatError(ValueError):
    """A number format other than the known ones."""


class ShapeError(ValueError):
    """A weight that is not a floating-point matrix, or statistics of another width."""


class MissingStatsError(ValueError):
    """The method needs statistics of the layer's inputs and got none."""


class UnknownQuantizerError(ValueError):
    """No quantizer of that name is installed."""


class UnknownOptionError(ValueError):
    """The quantizer has no option of that name."""


class OptionValueError(ValueError):
    """The option exists, its value makes no sense."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name nearest to `name`, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
