"""GPTQ after a Hadamard rotation of the layer's inputs; see `quantizers.rotation`."""

from __future__ import annotations

from dataclasses import dataclass

from quantizers.gptq import GPTQ
from quantizers.rotation import Rotated


@dataclass(frozen=True)
class HadamardGPTQ(Rotated, GPTQ):
    """GPTQ after a Hadamard rotation of the inputs."""

    name = "hadamard-gptq"
    version = "1"
    plain = GPTQ
