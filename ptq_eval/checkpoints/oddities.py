"""What no training leaves in a model's parameters, and where its configuration contradicts itself or them.

Loading succeeds in all these cases, and what would be measured is not the model that was trained: weights that were
quantized before, matrices of one value, norms of zero, a head that should be the embedding, a class of another type.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ptq_eval.checkpoints.account import Account
from ptq_eval.checkpoints.grid import Grid
from ptq_eval.checkpoints.surplus import Finding, block_lists, some, weights_of, within

if TYPE_CHECKING:
    from ptq_eval.checkpoints.weights import WeightReport
    from ptq_eval.models.blueprint import Blueprint


def oddities(plan: Blueprint, account: Account, report: WeightReport) -> list[Finding]:
    """What no training leaves in the weights, and where the configuration contradicts itself or them."""
    module = plan.module
    constant = _constant(module, report.constant - {*report.non_finite}, account.parameters)
    found = (
        _other_class(plan),
        constant,
        None if constant and constant.fatal else _dead(module, report.zero, account.parameters),
        _coarse(module, {n: g for n, g in report.coarse.items() if n not in report.constant}, account.parameters),
        _untied(module, account, report),
    )
    return [finding for finding in found if finding is not None]


def _other_class(plan: Blueprint) -> Finding | None:
    """A class in config.json that belongs to another type of model; the tensors of some types are called alike."""
    if not plan.other_class:
        return None
    return Finding(
        "class_differs",
        f"config.json names {plan.other_class}, but its model_type is {plan.config.model_type}: measured as that",
        "correct whichever of the two is wrong",
        fatal=False,
    )


def _untied(module: Any, account: Account, report: WeightReport) -> Finding | None:
    """A head that is stored beside the embedding it is tied to by the configuration, and holds other numbers.

    transformers then loads both; the model is not the one that its configuration says, nor are N and the bits counted.
    """
    head, embedding = module.get_output_embeddings(), module.get_input_embeddings()
    if head is None or embedding is None or head.weight is not embedding.weight:
        return None
    body = f"{module.base_model_prefix}."
    tied = {name.removeprefix(body) for name, weight in weights_of(module).items() if weight is head.weight}
    stored = sorted(name for name in account.parameters if name.removeprefix(body) in tied)
    if len({(report.tensors[name], report.checksums[name]) for name in stored}) < 2 or _alike(report, stored):
        return None
    return Finding(
        "untied_head",
        f"config.json ties the output head to the embedding, but {some(stored)} differ: both are measured as stored",
        "set tie_word_embeddings to false in config.json; where the head is not used, remove it from the file",
        fatal=False,
    )


def _alike(report: WeightReport, names: Sequence[str]) -> bool:
    """Whether tensors of several types are one but for the rounding of these types."""
    import numpy as np  # not when help is printed

    first, *others = (report.samples[name] for name in names)
    types = {report.tensors[name][0] for name in names}
    return len(types) > 1 and all(
        first.shape == other.shape and np.allclose(first, other, rtol=0.01, atol=1e-6) for other in others
    )


_ON_GRID = {
    Grid.FEW_VALUES: "at most 16 different values in each group of weights, as after quantization to 4 bits or fewer",
    Grid.STEPS: "weights that are multiples of one step in each group, as after quantization to 8 bits or fewer",
    Grid.FEW_MANTISSAS: "weights of few mantissas, as after rounding to 8-bit floats",
}


def _coarse(module: Any, coarse: Mapping[str, Grid], parameters: Collection[str]) -> Finding | None:
    """Weights of layers are on a grid as quantized ones are."""
    body = f"{module.base_model_prefix}."
    layers = {name.removeprefix(body) for name in weights_of(module)}
    found = {n: grid for n, grid in coarse.items() if n in parameters and n.removeprefix(body) in layers}
    if not found:
        return None
    kinds = [f"{text}: {some(n for n, grid in found.items() if grid is kind)}" for kind, text in _ON_GRID.items()
             if kind in found.values()]  # fmt: skip
    return Finding(
        "coarse_weights",
        f"{'; '.join(kinds)}; what is measured is a second quantization",
        "measure the checkpoint that it was quantized from",
        fatal=False,
    )


def _constant(module: Any, constant: Collection[str], parameters: Collection[str]) -> Finding | None:
    """Matrices that hold one value throughout: not fatal where the model may be new.

    Some trainings begin with output projections, or the head, at zero; never with the embedding or most matrices.
    """
    body = f"{module.base_model_prefix}."
    sizes = {name.removeprefix(body): min(p.shape) for name, p in module.named_parameters() if p.dim() > 1}
    matrices = {n for n in parameters if sizes.get(n.removeprefix(body), 0) > 1 and not n.endswith("bias")}
    dead = matrices & set(constant)
    if not dead:
        return None
    embedding = module.get_input_embeddings()
    first = {name.removeprefix(body) for name, p in weights_of(module).items() if embedding and p is embedding.weight}
    whole = 2 * len(dead) > len(matrices) or not first.isdisjoint(name.removeprefix(body) for name in dead)
    message = f"{len(dead)} of {len(matrices)} matrices hold a single value, such as zero: {some(dead)}"
    return Finding("constant_weights", message, fatal=whole)


def _dead(module: Any, zero: Collection[str], parameters: Collection[str]) -> Finding | None:
    """Norms whose output is always zero: not fatal where the model may be new.

    A weight of zero alone does not say so, since some norms multiply by 1 + weight.  Some trainings begin with the norm
    behind each layer at zero; never with most norms, nor with the last one.
    """
    body = f"{module.base_model_prefix}."
    stored = {name.removeprefix(body) for name in parameters}
    zeros = {name.removeprefix(body) for name in zero}
    norms = {
        name: part for name, part in module.named_modules()
        if "norm" in type(part).__name__.lower() and f"{name}.weight".removeprefix(body) in stored
    }  # fmt: skip
    named = {name for name in norms if f"{name}.weight".removeprefix(body) in zeros}
    dead = sorted(name for name in named if _puts_out_nothing(norms[name]))
    if not dead:
        return None
    whole = 2 * len(dead) > len(norms) or any(not within(name.removeprefix(body), block_lists(module)) for name in dead)
    message = f"{len(dead)} of {len(norms)} norms have weights of zero, and let nothing through: {some(dead)}"
    return Finding("constant_weights", message, fatal=whole)


def _puts_out_nothing(norm: Any) -> bool:
    """Whether a norm's output is zero for any input once its parameters are."""
    import torch

    copied = copy.deepcopy(norm).to_empty(device="cpu").float()
    with torch.inference_mode():
        for parameter in copied.parameters():
            parameter.zero_()
        try:
            return not bool(copied(torch.linspace(-1.0, 1.0, norm.weight.shape[-1])[None, None]).any())
        except Exception:  # one of further inputs, such as a gate
            return False
