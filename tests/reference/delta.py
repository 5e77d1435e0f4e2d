"""The measurement written the obvious way: whole activations are stored, windows are evaluated one by one.

A `solve(weights, inputs, bits, group_size)` gets matrices [out, in] that share one input and what they see of the
calibration windows, [tokens, in], and returns the new matrices.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from tests.reference import awq, gptq, rtn
from tests.support.models import matrix


def round_to_nearest(weights, inputs, bits, size):
    """RTN; the inputs do not matter."""
    return [rtn.rtn(weight, bits, size)[1] for weight in weights]


def solve_gptq(weights, inputs, bits, size):
    """GPTQ with the defaults of the paper's code."""
    return [gptq.gptq(weight, gptq.hessian_of(inputs), bits, size)[1] for weight in weights]


def solve_awq(weights, inputs, bits, size):
    """AWQ without clipping."""
    return [np.float32(new) for new in awq.awq(weights, inputs, bits, size)[2]]


def linear_names(model):
    """The linear layers of a model but for its output head."""
    head = model.get_output_embeddings()
    return [name for name, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D") and m is not head]


@torch.no_grad()
def inputs_of(model, names, windows):
    """The input of each named layer, [tokens, in], in order of execution, when `windows` pass through the model."""
    seen = {}

    def hook(name):
        return lambda module, args: seen.update({name: args[0].flatten(0, 1).clone()})

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    model(input_ids=windows)
    for handle in handles:
        handle.remove()
    return seen


def groups_of(model, names, windows):
    """The named layers in order of execution; neighbours whose inputs have the same values form one group."""
    seen = inputs_of(model, names, windows[:1])
    groups = []
    for name, inputs in seen.items():
        if groups and torch.equal(inputs, seen[groups[-1][0]]):
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups


@torch.no_grad()
def quantize(model, names, solve, bits, size, calibration=None, sequential=False):
    """Replace the named matrices; "sequential" runs the calibration windows through the model again for every group."""
    groups = [[name] for name in names] if calibration is None else groups_of(model, names, calibration)
    inputs = {} if calibration is None or sequential else inputs_of(model, names, calibration)
    for group in groups:
        if sequential:
            inputs = inputs_of(model, group, calibration)
        matrices = [matrix(model.get_submodule(name)) for name in group]
        x = inputs[group[0]].numpy() if inputs else None
        for old, new in zip(matrices, solve([m.numpy().copy() for m in matrices], x, bits, size)):
            old.copy_(torch.from_numpy(new))


@torch.no_grad()
def mean_loss(model, windows):
    """Mean cross entropy over all tokens but the first of each window, one window at a time."""
    total = 0.0
    for window in windows:
        logits = model(input_ids=window[None]).logits[0, :-1]
        total += functional.cross_entropy(logits.double(), window[1:], reduction="sum").item()
    return total / (len(windows) * (windows.shape[1] - 1))


def naive_delta(folder, windows, names, bits, size, solve=round_to_nearest, **calibrated):
    """(loss, loss after − loss before) of the model in `folder`; `solve` replaces the named matrices, or all (None)."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    before = mean_loss(model, windows)
    quantize(model, linear_names(model) if names is None else names, solve, bits, size, **calibrated)
    return before, mean_loss(model, windows) - before
