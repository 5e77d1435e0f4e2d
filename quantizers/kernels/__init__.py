"""The two inner loops of the package, each in up to three versions that give the same codes.

`solve_block` rounds a block of GPTQ's columns one by one; `rounding_errors` rounds a weight under many channel
scales, which is what AWQ's search does.  Written in torch both are a chain of small operations, each of which reads
and writes the whole matrix; compiled, a tile of rows stays in the core's cache until its last column is done.

    plain.py    torch, on every device; what the others are tested against
    cpu.py      numba, one thread per core over tiles of rows; used on CPUs where numba is installed
    cuda.py     Triton, one program per tile of rows; used on CUDA for the first of the two

All of them take matrices as [columns, rows], transposed: the rows are independent of each other, so they are what
lies side by side in memory and in vector registers.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from quantizers.kernels import plain
from quantizers.kernels.block import Block

COMPILED = {"cpu": "numba", "cuda": "triton"}


def backend(device: torch.device) -> str:
    """What runs the inner loops on a device: "numba", "triton" or "torch"."""
    package = COMPILED.get(device.type)
    return package if package and _usable(package) else "torch"


@cache
def _usable(package: str) -> bool:
    """Whether a package can be imported: numba, for one, refuses versions of numpy that it does not know."""
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    return True


def _module(device: torch.device) -> ModuleType:
    name = backend(device)
    if name == "numba":
        from quantizers.kernels import cpu

        return cpu
    if name == "triton":
        from quantizers.kernels import cuda

        return cuda
    return plain


def solve_block(block: Block) -> None:
    """Round the columns of `block` in order, each with the errors of those before it fed back; writes its results."""
    _module(block.state.device).solve_block(block)


def rounding_errors(weight: Tensor, scales: Tensor, bits: int, size: int, symmetric: bool) -> Tensor:
    """Ŵ − W [candidates, columns, rows] for W = `weight` [columns, rows] scaled, rounded and scaled back.

    scales [candidates, columns] multiply the columns before they are rounded in groups of `size` columns.
    """
    return _module(weight.device).rounding_errors(weight, scales, bits, size, symmetric)
