"""Loss of a model, and of the same model under other weights, window by window.

The full-precision logits of a batch are computed once and serve every lane: each lane's weights are put in place by
reference, its logits of the same batch give its loss, KL(full precision ‖ lane) and top-1 agreement, and nothing
larger than one batch of logits is ever kept.  Sums are per window, because the window is the unit that the paired
standard error resamples.

With z the full-precision logits, q the lane's, and p = softmax(z), each token's KL is
Σ p·(z − q) − logsumexp(z) + logsumexp(q), so a lane costs two passes over its logits and one dot product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ptq_eval.models import LanguageModel

_LOGIT_BYTES = {"cpu": 8 * 2**20, "cuda": 512 * 2**20}
"""Aim for the float32 logits of one batch: on a CPU small enough for caches, on a GPU large enough to fill it."""


@dataclass
class Scores:
    """Per window: the summed negative log-likelihood and KL (nats), and the count of agreeing top-1 tokens."""

    nll: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    agree: list[int] = field(default_factory=list)


def batch_size(model: LanguageModel, seq_len: int) -> int:
    """Windows per batch: a function of shapes alone, so that results do not depend on free memory."""
    aim = _LOGIT_BYTES.get(model.device.type, _LOGIT_BYTES["cpu"])
    return max(1, min(64, aim // (4 * seq_len * model.vocab_size)))


def evaluate(
    model: LanguageModel,
    ids: Tensor,
    lanes: Sequence[Mapping[str, Tensor]] = (),
    *,
    batch: int | None = None,
    tick: Callable[[int], None] | None = None,
) -> tuple[Scores, list[Scores]]:
    """Scores of the model on windows `ids` [n, time], and of the model with each lane's weights {name: [out, in]}.

    The first token of a window is context only: time − 1 tokens are scored.  `tick(windows)` is called after each
    forward pass.  Returns (full precision, one Scores per lane).
    """
    batch = batch or batch_size(model, ids.shape[1])
    full, scores = Scores(), [Scores() for _ in lanes]
    for rows in ids.to(device=model.device, dtype=torch.long).split(batch):
        reference = _Reference(model.logits(rows), rows, keep=bool(lanes))
        full.nll += reference.nll.sum(1, dtype=torch.float64).tolist()
        if tick:
            tick(len(rows))
        for lane, score in zip(lanes, scores):
            with model.weights(lane):
                logits = model.logits(rows)
            _score(logits, rows, reference, score)
            if tick:
                tick(len(rows))
    return full, scores


class _Reference:
    """What a batch of full-precision logits leaves behind for the lanes."""

    @torch.inference_mode()
    def __init__(self, logits: Tensor, ids: Tensor, *, keep: bool) -> None:
        z = logits[:, :-1].float()
        lse = z.logsumexp(-1)
        self.nll = lse - _of_target(z, ids)
        if keep:
            self.probability = (z - lse[..., None]).exp_()
            self.top = z.max(-1).indices
            # Σ p·z − logsumexp(z): the negative entropy of each position
            self.negative_entropy = _dot(self.probability, z) - lse


@torch.inference_mode()
def _score(logits: Tensor, ids: Tensor, reference: _Reference, score: Scores) -> None:
    q = logits[:, :-1].float()
    lse = q.logsumexp(-1)
    score.nll += (lse - _of_target(q, ids)).sum(1, dtype=torch.float64).tolist()
    kl = reference.negative_entropy - _dot(reference.probability, q) + lse
    score.kl += kl.sum(1, dtype=torch.float64).tolist()
    score.agree += (q.max(-1).indices == reference.top).sum(1).tolist()


def _of_target(logits: Tensor, ids: Tensor) -> Tensor:
    return logits.gather(-1, ids[:, 1:, None])[..., 0]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vecdot(a, b)
