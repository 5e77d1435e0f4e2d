"""The measurement as one would write it at once: no sharing, no batches, nothing of the package."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from tests.support.models import matrix


def round_to_nearest(weight, bits, size):
    """An asymmetric grid per `size` columns of a row, written entry by entry in numpy."""
    out = np.empty_like(weight)
    top = np.float32(2**bits - 1)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], size):
            group = weight[row, start : start + size]
            low, high = np.minimum(group.min(), np.float32(0)), np.maximum(group.max(), np.float32(0))
            scale = (high - low) / top
            zero = np.rint(-low / scale)
            codes = np.clip(np.rint(group / scale) + zero, 0, top)
            out[row, start : start + size] = (codes - zero) * scale
    return out


@torch.no_grad()
def plain_loss(model, windows):
    """Mean cross entropy over all tokens but the first of each window, one window at a time."""
    total = 0.0
    for window in windows:
        logits = model(input_ids=window[None]).logits[0, :-1]
        total += functional.cross_entropy(logits.double(), window[1:], reduction="sum").item()
    return total / (len(windows) * (windows.shape[1] - 1))


def naive_delta(folder, windows, names, bits, size):
    """(loss, loss after − loss before) of the model in `folder` with the named matrices rounded to nearest."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    before = plain_loss(model, windows)
    for name in names:
        weight = matrix(model.get_submodule(name))
        with torch.no_grad():
            weight.copy_(torch.from_numpy(round_to_nearest(weight.numpy().copy(), bits, size)))
    return before, plain_loss(model, windows) - before
