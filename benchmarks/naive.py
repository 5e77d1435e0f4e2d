"""The measurement as one would write it at once, to hold the package against: loops, whole activations, no sharing.

Nothing here uses the package, and the algebra is the most direct one: GPTQ inverts the Hessian of the remaining columns
anew for every column, AWQ multiplies stored activations.  Both are written from the papers (arXiv 2210.17323 and
2306.00978), with the choices that they leave open made as the package's documentation says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

Array = NDArray[np.floating]
Solve = Callable[[list[Array], Array, int, int], list[Array]]
"""(weights [out, in] that share an input, inputs [tokens, in], bits, group size) to the new weights."""


def grid(group: Array, bits: int) -> tuple[np.float32, np.float32]:
    """Scale and zero of one group of one row: asymmetric, the range widened to contain 0."""
    low, high = np.float32(min(group.min(), 0)), np.float32(max(group.max(), 0))
    if low == high:
        low, high = np.float32(-1), np.float32(1)
    scale = (high - low) / np.float32(2**bits - 1)
    return scale, np.rint(-low / scale)


def grids(weight: Array, bits: int) -> tuple[Array, Array]:
    """Scale and zero of each row of one group `weight` [rows, size], each [rows]."""
    pairs = [grid(row, bits) for row in weight.astype(np.float32)]
    return np.array([scale for scale, _ in pairs]), np.array([zero for _, zero in pairs])


def rounded(values: Array, scale: Array, zero: Array, bits: int) -> Array:
    """Each row of `values` [rows, …] on its own grid."""
    scale, zero = (part.reshape(-1, *[1] * (values.ndim - 1)) for part in (scale, zero))
    codes = np.clip(np.rint(values.astype(np.float32) / scale) + zero, 0, 2**bits - 1)
    return (codes - zero) * scale


def nearest(weight: Array, bits: int, size: int) -> Array:
    """Every group of `size` columns rounded to nearest."""
    out = np.empty_like(weight)
    for start in range(0, weight.shape[1], size):
        group = weight[:, start : start + size]
        out[:, start : start + size] = rounded(group, *grids(group, bits), bits)
    return out


def rtn(weights: list[Array], inputs: Array, bits: int, size: int) -> list[Array]:
    """Round to nearest; the inputs do not matter."""
    return [nearest(weight, bits, size) for weight in weights]


def gptq(weights: list[Array], inputs: Array, bits: int, size: int) -> list[Array]:
    """Equation 2 of the paper for one column after the other, damping 0.01, scales from before the current 128."""
    x = inputs.astype(np.float64)
    hessian = 2 / len(x) * x.T @ x
    hessian += 0.01 * np.diag(hessian).mean() * np.eye(len(hessian))
    return [_gptq(weight.astype(np.float64), hessian, bits, size) for weight in weights]


def _gptq(weight: Array, hessian: Array, bits: int, size: int) -> Array:
    for j in range(weight.shape[1]):
        if j % 128 == 0:
            before = weight.copy()
        if j % size == 0:
            scale, zero = grids(before[:, j : j + size], bits)
        row = np.linalg.inv(hessian[j:, j:])[0]
        new = rounded(weight[:, j], scale, zero, bits)
        weight[:, j + 1 :] -= np.outer((weight[:, j] - new) / row[0], row[1:])
        weight[:, j] = new
    return weight.astype(np.float32)


def awq(weights: list[Array], inputs: Array, bits: int, size: int) -> list[Array]:
    """Equation 4 and 5 of the paper, the exponent searched in twentieths on the outputs of the layers."""
    means, best, least = np.abs(inputs).mean(0), weights, np.inf
    for step in range(20):
        scales = np.maximum(means ** np.float32(step / 20), np.float32(1e-4))
        scales = scales / np.sqrt(scales.max() * scales.min())
        tried = [nearest(weight * scales, bits, size) / scales for weight in weights]
        error = sum(
            float(np.square(inputs @ (new - old).T, dtype=np.float64).sum()) for new, old in zip(tried, weights)
        )
        if error < least:
            best, least = tried, error
    return best


def linear_names(model: nn.Module) -> list[str]:
    """The names of the matrices that are quantized: of all linear layers but the output head."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return [n for n, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D") and m is not head]


def matrix(module: nn.Module) -> Tensor:
    """The weight of a linear layer as [out, in]; GPT-2 stores it the other way round."""
    weight: Tensor = module.weight.data  # type: ignore[assignment,union-attr]
    return weight if isinstance(module, nn.Linear) else weight.T


@torch.no_grad()
def inputs_of(model: nn.Module, names: Sequence[str], windows: Tensor) -> dict[str, Tensor]:
    """What each named layer sees, [tokens, in], when `windows` pass through the model as it stands."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[name] = args[0].flatten(0, 1).clone()

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(keep(name)) for name in names]
    model(input_ids=windows)
    for handle in handles:
        handle.remove()
    return seen


def groups_of(model: nn.Module, names: Sequence[str], windows: Tensor) -> list[list[str]]:
    """The named layers in order of execution, neighbours together whose inputs are equal in every value."""
    seen = inputs_of(model, names, windows[:1])
    groups: list[list[str]] = []
    for name, inputs in seen.items():
        if groups and inputs.shape == seen[groups[-1][0]].shape and torch.equal(inputs, seen[groups[-1][0]]):
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups


@torch.no_grad()
def quantize(
    model: nn.Module, names: Sequence[str], windows: Tensor, solve: Solve, bits: int, size: int, *, sequential: bool
) -> None:
    """Replace the named matrices of `model`; "sequential" passes all windows through it again for every layer."""
    groups = groups_of(model, names, windows)
    inputs = {} if sequential else inputs_of(model, names, windows)
    for group in groups:
        if sequential:
            inputs = inputs_of(model, group, windows)
        matrices = [matrix(model.get_submodule(name)) for name in group]
        new = solve([m.numpy().copy() for m in matrices], inputs[group[0]].numpy(), bits, size)
        for old, array in zip(matrices, new):
            old.copy_(torch.from_numpy(array))


@torch.no_grad()
def losses(model: nn.Module, windows: Tensor) -> list[float]:
    """Mean cross entropy of each window over all tokens but the first, one window at a time."""
    means = []
    for window in windows:
        logits = model(input_ids=window[None]).logits[0, :-1]
        means.append(functional.cross_entropy(logits.double(), window[1:]).item())
    return means
