"""The noise of a stochastic gradient at fixed parameters.

With g_i the gradient of the mean loss of batch i, i = 1 … n, and ḡ their mean,

    variance = 1/(n − 1) Σ |g_i − ḡ|²

is the trace of the covariance of one batch's gradient, without bias: the S of McCandlish et al. 2018 (arXiv 1812.06162,
section 2.2) divided by the size of a batch.  The parameters stay where they are, so that neither training nor the
optimizer's state is in it.  Sums are in float64: the variance is a small difference of large numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Noise:
    """`mean` [parameters], float64: ḡ; `norm`: the mean of |g_i|; `variance`: tr Cov(g_i)."""

    mean: Tensor
    norm: float
    variance: float


def gradient(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The gradient of `loss` by all parameters in one vector, float64; zero where one is not reached."""
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    parts = [torch.zeros_like(own) if one is None else one for own, one in zip(parameters, found)]
    return torch.cat([part.flatten().double() for part in parts])


def gradient_noise(loss: Callable[[Tensor], Tensor], parameters: Sequence[Tensor], batches: Iterable[Tensor]) -> Noise:
    """The noise of loss(batch) over `batches`, of which there are at least two (Welford's updates)."""
    mean, scatter, norms = torch.zeros(0), 0.0, []
    for count, batch in enumerate(batches, 1):
        own = gradient(loss(batch), parameters)
        norms.append(float(own.norm()))
        apart = own - mean if count > 1 else own
        mean = mean + apart / count if count > 1 else own
        scatter += float(apart @ (own - mean))
    return Noise(mean, sum(norms) / len(norms), scatter / (len(norms) - 1))
