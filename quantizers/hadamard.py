"""Plain methods after a Hadamard rotation of the layer's inputs; see `quantizers.rotation`."""

from __future__ import annotations

from dataclasses import dataclass

from quantizers.gptq import GPTQ
from quantizers.rotation import Rotated
from quantizers.rtn import RTN


@dataclass(frozen=True)
class HadamardRTN(Rotated, RTN):
    """Round to nearest after a Hadamard rotation of the inputs."""

    name = "hadamard-rtn"
    version = "1"
    plain = RTN


@dataclass(frozen=True)
class HadamardGPTQ(Rotated, GPTQ):
    """GPTQ after a Hadamard rotation of the inputs."""

    name = "hadamard-gptq"
    version = "1"
    plain = GPTQ
