"""Quantizers for tests: one records its statistics, one overwrites them, one fails for some layers."""

from __future__ import annotations

from dataclasses import dataclass

from quantizers import QuantizationError, QuantizedWeight, Quantizer, option
from quantizers.rtn import RTN


@dataclass(frozen=True)
class Spy(Quantizer):
    """Rounds to nearest; appends a copy of the statistics of each group to the class's list `seen`."""

    name = "spy"
    version = "1"
    needs_stats = True
    default_calibration = "shared"
    seen = []

    def quantize(self, weight, scheme, stats=None):
        return RTN().quantize(weight, scheme)

    def quantize_group(self, weights, scheme, stats=None):
        self.seen.append((len(weights), stats.hessian, stats.mean_abs, stats.n_tokens))
        return super().quantize_group(weights, scheme, stats)


@dataclass(frozen=True)
class Vandal(Quantizer):
    """Overwrites every tensor that it may read."""

    name = "vandal"
    version = "1"
    needs_stats = True
    default_calibration = "shared"

    def quantize(self, weight, scheme, stats=None):
        stats.hessian.fill_(7)
        stats.hessian.diagonal().add_(1)
        stats.mean_abs.zero_()
        return RTN().quantize(weight, scheme)


@dataclass(frozen=True)
class Refuser(Quantizer):
    """Fails for layers that have 48 inputs."""

    name = "refuser"
    version = "1"
    needs_stats = True
    default_calibration = "sequential"

    def quantize(self, weight, scheme, stats=None):
        if weight.shape[1] == 48:
            raise QuantizationError("48 is too many")
        return RTN().quantize(weight, scheme)


@dataclass(frozen=True)
class Idle(Quantizer):
    """Asks for statistics, and rounds to nearest all the same."""

    name = "idle"
    version = "1"
    needs_stats = True
    default_calibration = "shared"

    def quantize(self, weight, scheme, stats=None):
        return RTN().quantize(weight, scheme)


class Kept(QuantizedWeight):
    """Codes whose weight is the original one."""

    def dequantize(self, dtype=None):
        return self.report["weight"].clone()


@dataclass(frozen=True)
class Still(Idle):
    """Gives the weights back that it was given: of all layers, or of those that have 48 inputs."""

    name = "still"
    every: bool = option(True, "All layers.")

    def quantize(self, weight, scheme, stats=None):
        rounded = RTN().quantize(weight, scheme)
        if not self.every and weight.shape[1] != 48:
            return rounded
        return Kept(**{**vars(rounded), "report": {"weight": weight.detach().clone()}})


@dataclass(frozen=True)
class Shuffler(Idle):
    """Rounds a matrix whose columns are in another order."""

    name = "shuffler"

    def quantize(self, weight, scheme, stats=None):
        return RTN().quantize(weight.roll(1, dims=1), scheme)


@dataclass(frozen=True)
class Mirror(Idle):
    """Rounds the negative of a matrix."""

    name = "mirror"

    def quantize(self, weight, scheme, stats=None):
        return RTN().quantize(-weight, scheme)
