"""The inner loops of the package, each in up to three versions that give the same codes.

`solve_block` rounds a block of GPTQ's columns one by one to integers, `solve_levels` to the levels of another format;
`rounding_errors` rounds a weight under many channel scales to integers, as AWQ's search does.  In torch they are chains
of small operations, each reading and writing the whole matrix; compiled, a tile of rows stays in the core's cache
until its last column is done.

    plain.py    torch, on every device; the compiled versions are tested against it
    cpu.py      numba, one thread per core over tiles of rows; on CPUs
    cuda.py     Triton, one program per tile of rows; on CUDA, for `solve_block`

Matrices are transposed, [columns, rows]: the rows do not depend on each other, so they are contiguous in memory and
fill the vector registers.  A compiler is imported when a kernel is first used.  If it cannot be imported, the kernels
run in torch, which takes up to three times as long, and one SlowKernelWarning says so.
"""

from __future__ import annotations

import importlib
import warnings
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from quantizers.errors import SlowKernelWarning
from quantizers.kernels import plain
from quantizers.kernels.plain import Block, LevelBlock

__all__ = ["Block", "LevelBlock", "backend", "rounding_errors", "solve_block", "solve_levels"]

COMPILERS = {"cpu": "numba", "cuda": "triton"}


def backend(device: torch.device) -> str:
    """What runs the inner loops on a device: "numba", "triton" or "torch"."""
    package = COMPILERS.get(device.type)
    return package if package and _usable(package) else "torch"


@cache
def _usable(package: str) -> bool:
    """Whether a package can be imported; an installed numba, for one, refuses a numpy that is newer than it knows."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        reason = " ".join(str(error).split())
        warnings.warn(
            f"the inner loops run in torch, up to three times slower: {package} cannot be imported | got {reason} | "
            f"remedy: pip install {package}",
            SlowKernelWarning,
            stacklevel=2,
        )
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
    """Round the columns of `block` in order, feeding each error back into the later ones; writes codes and delta."""
    _module(block.state.device).solve_block(block)


def solve_levels(block: LevelBlock) -> None:
    """As `solve_block` for the levels of a format."""
    _module(block.state.device).solve_levels(block)


def rounding_errors(weight: Tensor, scales: Tensor, bits: int, size: int, symmetric: bool) -> Tensor:
    """Ŵ − W [candidates, columns, rows] for W = `weight` [columns, rows] scaled, rounded, and scaled back.

    `scales` [candidates, columns] multiply the columns before these are rounded in groups of `size` columns.
    """
    return _module(weight.device).rounding_errors(weight, scales, bits, size, symmetric)
