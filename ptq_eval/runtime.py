"""How what exists only while a model runs is quantized: the inputs of its linear layers, and the keys and values.

Plain records, of which a trial keeps the fields.  `quantizers.tensors` rounds, `measure.simulation` does it in a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ptq_eval.records import Trial

Per = Literal["tensor", "token", "channel"]
"""What shares a scale: a window's values at one place, the channels of a token, or a channel over a window's tokens."""
PER: tuple[Per, ...] = ("tensor", "token", "channel")
Range = Literal["dynamic", "static"]
"""Whether a range is of the values that are rounded, or of those in the calibration windows."""
RANGES: tuple[Range, ...] = ("dynamic", "static")
Rope = Literal["after", "before"]
"""Whether keys are rounded after the rotary embedding or before it."""
ROPE: tuple[Rope, ...] = ("after", "before")


@dataclass(frozen=True)
class Rounding:
    """How one kind of tensor is rounded: the number format (a name that `quantizers.Scheme.of` takes) with its bits,
    what shares a scale, where its range is from, and the digest of the calibration windows of a static range."""

    format: str
    bits: int
    per: Per
    range: Range = "dynamic"
    windows: str = ""

    def to_dict(self) -> dict[str, Any]:
        """A JSON object, with the windows only where there are any."""
        return {name: value for name, value in asdict(self).items() if value != ""}


@dataclass(frozen=True)
class Cache:
    """How the key-value cache is rounded."""

    keys: Rounding
    values: Rounding
    rope: Rope = "after"

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; `from_dict` is its inverse."""
        return {"keys": self.keys.to_dict(), "values": self.values.to_dict(), "rope": self.rope}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cache:
        """The inverse of `to_dict`."""
        return cls(Rounding(**data["keys"]), Rounding(**data["values"]), data["rope"])


def is_runtime(trial: Trial) -> bool:
    """Whether a trial quantizes activations or the cache."""
    return bool(trial.activations or trial.cache)


def of_weights(trial: Trial) -> Trial:
    """The trial that quantizes the weights as this one, and nothing else, and measures a loss."""
    return replace(trial, activations={}, cache={}, task={})


COLUMNS = (
    *("activation_format", "activation_bits", "activation_per", "activation_range"),
    *("kv_format", "kv_bits", "key_per", "key_rope", "value_per", "kv_range"),
)
"""Columns of a table about activations and cache, empty in full precision."""


def columns_of(trial: Trial) -> dict[str, Any]:
    """The values of `COLUMNS` that a trial has."""
    found: dict[str, Any] = {
        f"activation_{name}": trial.activations.get(name) for name in ("format", "bits", "per", "range")
    }
    if trial.cache:
        keys, values = trial.cache["keys"], trial.cache["values"]
        ranges = {keys["range"], values["range"]}
        found |= {"kv_format": keys["format"], "kv_bits": keys["bits"], "key_per": keys["per"]}
        found |= {"key_rope": trial.cache["rope"], "value_per": values["per"], "kv_range": max(ranges)}
    return {name: value for name, value in found.items() if value is not None}
