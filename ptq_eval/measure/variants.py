"""A quantized variant of the model: the weights that one quantizer and scheme put in place of the original ones.

Each weight is dequantized once, when its layer is quantized, and from then on only swapped in by reference.  Where work
is kept (`kept`), weights are on disk and what happened to each layer is noted, so that a later process goes on with the
next one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ptq_eval.measure import mixtures
from ptq_eval.measure.doubts import Witness
from ptq_eval.measure.foreign.quantizer import Foreign, method_of
from ptq_eval.measure.kept import Kept, OnDisk
from ptq_eval.measure.schemes import refusal
from ptq_eval.models.predecessors import obstacle
from ptq_eval.records import Trial
from quantizers import QuantizedWeight, Quantizer, Scheme, gaussian_mse
from quantizers.stats import Rotation

ROUNDING = "rtn"
ZERO_BITS = 16
"""Of a zero point that is no code."""
SCALE_BITS = 16
"""Of the scale of an input channel, as `QuantizedWeight.bits_per_weight` counts it."""


@dataclass
class Variant:
    """The model under one quantizer and scheme: its weights by layer name, and what happened while quantizing."""

    quantizer: Quantizer
    scheme: Scheme
    """The scheme of all layers that are not in `mixture`."""
    mixture: Mapping[str, Scheme] = field(default_factory=dict)
    """The schemes of layers that have their own, in mixed precision."""
    weights: MutableMapping[str, Tensor] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    stored: dict[str, tuple[float, int]] = field(default_factory=dict)
    """What storing a layer takes, in bits, and how many weights it has, by name."""
    scheme_bits: float = 0.0
    input_scales: dict[str, Tensor] = field(default_factory=dict)
    """Scales of input channels [in] of the layers that have any."""
    rotations: dict[str, Rotation] = field(default_factory=dict)
    """Rotations of the inputs of the layers that have any."""
    reports: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    layers: dict[str, QuantizedWeight] | None = None
    """The codes and scales behind the weights, where they are wanted."""
    others: dict[str, Tensor] = field(default_factory=dict)
    """Parameters outside the layers, by name, that the method changes too, such as norms; a backend's alone."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What a backend reports, and which layers a method rounded to nearest for want of inputs, for the record."""
    failed: str = ""
    """Why there is no variant, where the method cannot do its scheme or failed."""
    witness: Witness = field(init=False)
    """What is noted while layers are quantized."""
    kept: Kept | None = None
    """Where work is kept, if it is, under `name`."""
    name: str = ""

    def __post_init__(self) -> None:
        rounding = self.quantizer.name == ROUNDING
        plain = rounding or isinstance(self.quantizer, Foreign)
        self.witness = Witness(compared=self.quantizer.needs_stats or not plain, rounding=rounding)
        if self.kept is not None:
            weights = self.kept.tensors(self.name)
            self.weights = weights
            for part in self.kept.parts(self.name):
                self._restore(part, weights, self.kept.tensors(f"{self.name}.inputs"))

    @property
    def carried(self) -> Mapping[str, Tensor]:
        """All parameters that the model carries when it is this variant."""
        return {**self.weights, **self.others} if self.others else self.weights

    def scheme_of(self, name: str) -> Scheme:
        """The scheme of a layer."""
        return self.mixture.get(name, self.scheme)

    @property
    def failure(self) -> str:
        """Why there is nothing to measure, for the record; empty where there is."""
        if self.failed:
            return self.failed
        if self.weights and len(self.witness.still) == len(self.weights):
            return f"{self.quantizer.name} left all weights unchanged"
        if self.skipped and not self.weights:
            return "no layer could be quantized: " + next(iter(self.skipped.values()))
        return ""

    def add_dense(self, name: str, weight: Tensor, own: Tensor) -> None:
        """Store a layer's weight [out, in] that a backend has made in place of `own`."""
        self.weights[name] = torch.empty_like(own).copy_(weight)
        self.witness.weight(name, own, weight, self.scheme_of(name))
        scheme = self.scheme_of(name)
        bits = scheme.bits_stored(*own.shape)
        zeros = own.shape[0] * scheme.groups(own.shape[1])
        self.stored[name] = (bits + zeros * (ZERO_BITS - scheme.bits) * self._real_zeros, own.numel())
        self.scheme_bits += bits

    @property
    def _real_zeros(self) -> bool:
        """Whether the zero points of a backend's method are numbers, not codes."""
        return isinstance(self.quantizer, Foreign) and self.quantizer.real_zeros

    def add(self, name: str, quantized: QuantizedWeight, own: Tensor) -> None:
        """Store one layer's result with the memory layout of the original weight `own` [out, in]."""
        weight = quantized.dequantize(own.dtype)
        # A Conv1D's [out, in] is a transposed view: with the same layout, the variant's weight is used without a copy.
        self.witness.weight(name, own, weight, self.scheme_of(name))
        laid_out = weight.stride() == own.stride()
        self.weights[name] = weight if laid_out else torch.empty_like(own, device=weight.device).copy_(weight)
        if self.layers is not None:
            self.layers[name] = quantized
        if quantized.input_scale is not None:
            self.input_scales[name] = quantized.input_scale
        if quantized.rotation is not None:
            self.rotations[name] = quantized.rotation
        weights = quantized.codes.numel()
        self.stored[name] = (quantized.bits_per_weight * weights, weights)
        self.scheme_bits += self.scheme_of(name).bits_stored(*quantized.codes.shape)
        report = dict(quantized.report)
        if quantized.ragged:
            report["ragged"] = 1
        self.reports[name] = report

    def skip(self, names: Iterable[str], reason: str) -> None:
        """Leave layers in full precision."""
        self.skipped.update(dict.fromkeys(names, reason))

    def fail(self, reason: str) -> None:
        """There is no such variant, for this reason."""
        self.failed = reason
        self.weights.clear()
        self.stored.clear()

    def keep(self, names: Iterable[str]) -> None:
        """Keep what became of these layers, where work is kept; their weights are on disk already."""
        if self.kept is None:
            return
        if self.failed:
            self.kept.add(self.name, {"failed": self.failed})
            return
        inputs = self.kept.tensors(f"{self.name}.inputs")
        for name in names:
            if name in self.input_scales:
                inputs[f"{name}.scale"] = self.input_scales[name]
            if name in self.rotations:
                inputs[f"{name}.signs"] = self.rotations[name].signs
                inputs[f"{name}.matrix"] = self.rotations[name].matrix
            part = {"layer": name, "skipped": self.skipped.get(name), "witness": self.witness.noted(name)}
            if name in self.weights:
                part |= {"stored": self.stored[name], "report": self.reports[name]}
                part |= {"scheme_bits": self.scheme_of(name).bits_stored(*self.weights[name].shape)}
            self.kept.add(self.name, part)

    def _restore(self, part: Mapping[str, Any], weights: OnDisk, inputs: OnDisk) -> None:
        """Take over what an earlier process kept of one layer."""
        if "failed" in part:
            self.fail(part["failed"])
            return
        name = part["layer"]
        if part["skipped"] is not None:
            self.skipped[name] = part["skipped"]
        elif not weights.adopt(name):
            return  # whatever became of its file
        else:
            bits, count = part["stored"]
            self.stored[name], self.reports[name] = (bits, count), part["report"]
            self.scheme_bits += part["scheme_bits"]
            if inputs.adopt(f"{name}.scale"):
                self.input_scales[name] = inputs[f"{name}.scale"]
            if inputs.adopt(f"{name}.signs") and inputs.adopt(f"{name}.matrix"):
                self.rotations[name] = Rotation(inputs[f"{name}.signs"], inputs[f"{name}.matrix"])
            self.witness.layers += 1
        self.witness.restore(name, part["witness"])

    def has(self, name: str) -> bool:
        """Whether this layer has been quantized or skipped."""
        return name in self.weights or name in self.skipped

    def fold(self, outputs: Mapping[str, int], model_type: str) -> None:
        """Count no storage for scales of input channels that the layer before can take, as in an exported file.

        `outputs` of every linear layer, by name.
        """
        schemes = {name: self.scheme_of(name) for name in self.stored}
        for name, scale in self.input_scales.items():
            if obstacle(name, self.input_scales, outputs, model_type, schemes.get) is None:
                bits, weights = self.stored[name]
                self.stored[name] = (bits - SCALE_BITS * len(scale), weights)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per quantized weight, scales and zeros included."""
        return self._bits / self.stored_weights if self.stored else math.nan

    @property
    def stored_weights(self) -> int:
        """How many weights are quantized."""
        return sum(weights for _, weights in self.stored.values())

    @property
    def _bits(self) -> float:
        return sum(bits for bits, _ in self.stored.values())

    @property
    def gaussian_mse(self) -> float:
        """The squared error on standard Gaussian numbers, a mean over weights."""
        sizes = {name: weight.numel() for name, weight in self.weights.items()} if self.mixture else {}
        if not sizes:
            return gaussian_mse(self.scheme)
        return sum(size * gaussian_mse(self.scheme_of(name)) for name, size in sizes.items()) / sum(sizes.values())

    def details(self) -> dict[str, Any]:
        """A summary for the record: sums and maxima of the layers' reports, and the layers skipped."""
        summary: dict[str, Any] = {"layers": len(self.weights), "layers_skipped": dict(self.skipped), **self.facts}
        if self.stored:
            summary["effective_bits"] = self.scheme_bits / self.stored_weights
        summary["gaussian_mse"] = self.gaussian_mse
        reports = self.reports.values()
        summary["ragged_layers"] = sum(1 for report in reports if report.get("ragged"))
        for source, name, combine in (
            ("damping", "damping_max", max),
            ("damping_retries", "damping_retries", sum),
            ("dead_columns", "dead_columns", sum),
        ):
            values = [report[source] for report in reports if isinstance(report.get(source), int | float)]
            if values:
                summary[name] = combine(values)
        return summary


def variants_of(trials: Sequence[Trial], kept: Kept | None = None) -> list[Variant]:
    """A variant for each trial, empty but for what is `kept` of it.

    Those whose method is not defined for their scheme have failed.
    """
    made: dict[str, Quantizer] = {}  # looking up an installed plug-in takes milliseconds
    variants = []
    for trial in trials:
        assert trial.scheme is not None
        name = f"{trial.quantizer} {sorted(trial.options.items())}"
        if name not in made:
            made[name] = method_of(trial.quantizer, **trial.options)
        variant = Variant(made[name], *mixtures.schemes_of(trial.scheme), kept=kept, name=trial.key())
        variant.failed = variant.failed or refusal(variant.quantizer, [variant.scheme, *variant.mixture.values()])
        variants.append(variant)
    return variants
