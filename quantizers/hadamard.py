"""Plain methods after a Hadamard rotation of the layer's inputs; see `quantizers.rotation`."""

from __future__ import annotations

from dataclasses import dataclass

from quantizers.gptaq import GPTAQ
from quantizers.gptq import GPTQ
from quantizers.gptq_noclip import GPTQNoClip
from quantizers.hqq import HQQ
from quantizers.qronos import Qronos
from quantizers.rotation import Rotated
from quantizers.rtn import RTN
from quantizers.signround import SignRound


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


@dataclass(frozen=True)
class HadamardHQQ(Rotated, HQQ):
    """HQQ after a Hadamard rotation of the inputs."""

    name = "hadamard-hqq"
    version = "1"
    plain = HQQ


@dataclass(frozen=True)
class HadamardGPTQNoClip(Rotated, GPTQNoClip):
    """GPTQ without clipping after a Hadamard rotation of the inputs."""

    name = "hadamard-gptq-noclip"
    version = "1"
    plain = GPTQNoClip


@dataclass(frozen=True)
class HadamardGPTAQ(Rotated, GPTAQ):
    """GPTAQ after a Hadamard rotation of the inputs."""

    name = "hadamard-gptaq"
    version = "1"
    plain = GPTAQ


@dataclass(frozen=True)
class HadamardQronos(Rotated, Qronos):
    """Qronos after a Hadamard rotation of the inputs."""

    name = "hadamard-qronos"
    version = "1"
    plain = Qronos


@dataclass(frozen=True)
class HadamardSignRound(Rotated, SignRound):
    """SignRound after a Hadamard rotation of the inputs."""

    name = "hadamard-signround"
    version = "1"
    plain = SignRound
