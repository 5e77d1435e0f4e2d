"""AWQ as the paper describes it (arXiv 2306.00978): searches on stored activations, without statistics."""

import numpy as np
import torch

from tests.reference.rtn import rtn


def awq(weights, inputs, bits, group_size=None, symmetric=False, mean_abs=None, relative=False):
    """Exponent, scales [in], and the new weights with the least error of the layers' outputs on `inputs` [tokens, in].

    Everything is in float64, unless `mean_abs`, the mean |x| of every channel in float32, is passed: then weights are
    scaled and rounded with the package's own bits, so that ties of the symmetric grid are rounded the same way.
    With `relative`, each layer's error is a share of its output.
    """
    inputs, least, best = inputs.astype(np.float64), np.inf, None
    means = torch.tensor(np.abs(inputs).mean(0) if mean_abs is None else mean_abs)
    for step in range(20):
        scales = torch.clamp(means ** (step / 20), min=1e-4)
        scales = (scales / torch.sqrt(scales.max() * scales.min())).numpy()
        tried = [rtn(weight * scales, bits, group_size, symmetric)[1] / scales for weight in weights]
        errors = [np.square(inputs @ np.float64(new - old).T).sum() for new, old in zip(tried, weights)]
        outputs = [np.square(inputs @ np.float64(old).T).sum() if relative else 1 for old in weights]
        error = sum(np.divide(errors, outputs))
        if error < least:
            least, best = error, (step / 20, scales, tried)
    return best


def awq_clip(weight, inputs, scales, bits, group_size, symmetric):
    """The weight [out, in] after the search for clipped ranges, scales divided out again."""
    scaled, inputs = weight * scales, inputs.astype(np.float64) / scales
    restored = np.zeros_like(scaled)
    for start in range(0, weight.shape[1], group_size):
        part = slice(start, start + group_size)
        for row in range(len(weight)):
            group, least = scaled[row : row + 1, part], np.inf
            for step in range(10):
                limit = np.abs(group).max() * (1 - step / 20)
                candidate = rtn(np.clip(group, -limit, limit), bits, None, symmetric)[1]
                error = ((inputs[:, part] @ (candidate - group)[0]) ** 2).sum()
                if error < least:
                    least, restored[row, part] = error, candidate[0]
    return restored / scales
