"""A lane: one model under one quantizer and scheme, as the weights that differ from the full-precision ones.

Each weight is dequantized once, when its layer is solved, and from then on only carried by reference.  Weights that
do not fit in memory lie in a folder instead (`OnDisk`): one safetensors file per layer, mapped into memory when the
layer runs, so that the operating system may drop its pages again at any time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from quantizers import QuantizedWeight, Quantizer, Scheme


class OnDisk(MutableMapping[str, Tensor]):
    """Tensors by name in a folder, one file each; what is read is a map of the file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: list[str] = []
        folder.mkdir(parents=True)

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        save_file({"weight": tensor.contiguous().cpu()}, self._path(name))
        if name not in self._names:
            self._names.append(name)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        with safe_open(self._path(name), framework="pt") as file:
            return file.get_tensor("weight")

    def __delitem__(self, name: str) -> None:
        self._names.remove(name)
        self._path(name).unlink()

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"


@dataclass
class Lane:
    """A model under one quantizer and scheme: its weights by layer name, and what happened on the way."""

    quantizer: Quantizer
    scheme: Scheme
    weights: MutableMapping[str, Tensor] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    stored_bits: float = 0.0
    stored_weights: int = 0
    reports: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def add(self, name: str, quantized: QuantizedWeight, own: Tensor) -> None:
        """Take up one layer's result, laid out in memory as the model's `own` weight [out, in] is."""
        weight = quantized.dequantize(own.dtype)
        # A Conv1D's [out, in] is a transposed view: laid out like it, the lane's weight is carried without a copy.
        laid_out = weight.stride() == own.stride()
        self.weights[name] = weight if laid_out else torch.empty_like(own, device=weight.device).copy_(weight)
        self.stored_bits += quantized.bits_per_weight * quantized.codes.numel()
        self.stored_weights += quantized.codes.numel()
        report = dict(quantized.report)
        if quantized.ragged:
            report["ragged"] = 1
        self.reports[name] = report

    def knows(self, name: str) -> bool:
        """Whether this layer has been solved, or given up."""
        return name in self.weights or name in self.skipped

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per quantized weight, scales and zeros included."""
        return self.stored_bits / self.stored_weights if self.stored_weights else math.nan

    def details(self) -> dict[str, Any]:
        """A summary for the record: sums and maxima of the layers' reports, and the layers left out."""
        summary: dict[str, Any] = {"layers": len(self.weights), "layers_skipped": dict(self.skipped)}
        reports = self.reports.values()
        summary["ragged_layers"] = sum(1 for report in reports if report.get("ragged"))
        for source, name, combine in (
            ("damping", "damping_max", max),
            ("damping_retries", "damping_retries", sum),
            ("dead_columns", "dead_columns", sum),
        ):
            values = [report[source] for report in reports if source in report]
            if values:
                summary[name] = combine(values)
        return summary
