"""Why a file format cannot hold a quantized model: facts, of which `report.export` makes sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Obstacle(StrEnum):
    """Why a file format cannot hold a layer; behind each kind, the facts that its sentence in `report/` needs."""

    NOT_INTEGERS = "not_integers"  # format
    NO_SUCH_BITS = "no_such_bits"  # bits, widths
    CONV1D = "conv1d"
    PARTIAL_GROUP = "partial_group"  # columns, group_size
    PARTIAL_WORD = "partial_word"  # count, what ("inputs" or "outputs"), bits, word (in bits)
    REORDERED_GROUPS = "reordered_groups"
    LARGE_SCALE = "large_scale"  # scale
    INPUT_SCALES = "input_scales"
    FREE_ZEROS = "free_zeros"
    NO_SUCH_TYPE = "no_such_type"  # format, types
    PARTIAL_BLOCK = "partial_block"  # columns, block
    MIXTURE = "mixture"  # schemes
    ARCHITECTURE = "architecture"  # model_type, known
    ACTIVATION = "activation"  # activation
    ROTARY_EMBEDDING = "rotary_embedding"  # type
    SLIDING_WINDOW = "sliding_window"  # window
    # why input scales cannot be folded into the layer before
    UNKNOWN_SOURCE = "unknown_source"  # layer, model_type
    UNEQUAL_SCALES = "unequal_scales"  # layer, sibling
    SHARED_OUTPUTS = "shared_outputs"  # source, outputs, inputs
    INDIVISIBLE_SCALES = "indivisible_scales"  # source, format


@dataclass(frozen=True)
class Refusal:
    """An obstacle with its facts."""

    kind: Obstacle
    facts: Mapping[str, Any] = field(default_factory=dict)


def refused(kind: Obstacle, **facts: Any) -> Refusal:
    """The refusal for this obstacle."""
    return Refusal(kind, facts)
