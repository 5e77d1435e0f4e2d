"""Loss of a model, and of the same model under other weights, window by window.

The full-precision logits of a batch are computed once and serve every lane: each lane's weights are put in place by
reference, its logits of the same batch give its loss, KL(full precision ‖ lane) and top-1 agreement, and nothing
larger than one batch of logits is ever kept.  Sums are per window, because the window is the unit that the paired
standard error resamples.

With z the full-precision logits, q the lane's, and p = softmax(z), each token's KL is
Σ p·(z − q) − logsumexp(z) + logsumexp(q), so a lane costs a maximum, an exponential and one dot product over its
logits.  On a CPU they run over a few rows at a time, into one buffer that stays in the core's own cache: for small
models reading logits from memory three times would cost as much as making them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ptq_eval.models import LanguageModel

_BATCH_BYTES = {"cpu": 8 * 2**20, "cuda": 512 * 2**20}
"""Aim for the float32 logits of one batch: on a CPU small enough for caches, on a GPU large enough to fill it."""

_ROWS_BYTES = {"cpu": 2**19, "cuda": 2**30}
"""Aim for the logits that are reduced at a time."""


@dataclass
class Scores:
    """Per window: the summed negative log-likelihood and KL (nats), and the count of agreeing top-1 tokens."""

    nll: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    agree: list[int] = field(default_factory=list)


def batch_size(model: LanguageModel, seq_len: int) -> int:
    """Windows per batch: a function of shapes alone, so that results do not depend on free memory."""
    return max(1, min(64, _aim(_BATCH_BYTES, model.device) // (4 * seq_len * model.vocab_size)))


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
    parameters = [model.parameters_of(lane) for lane in lanes]
    for rows in ids.to(device=model.device, dtype=torch.long).split(batch):
        reference = _Reference(model.logits(rows), rows, keep=bool(lanes))
        full.nll += reference.nll
        if tick:
            tick(len(rows))
        for lane, score in zip(parameters, scores):
            with model.carrying(lane):
                logits = model.logits(rows)
            _score(logits, rows, reference, score)
            if tick:
                tick(len(rows))
    return full, scores


class _Reference:
    """What a batch of full-precision logits leaves behind for the lanes."""

    @torch.inference_mode()
    def __init__(self, logits: Tensor, ids: Tensor, *, keep: bool) -> None:
        z = logits.float()
        lse = z.logsumexp(-1)
        self.nll = _per_window(lse[:, :-1] - _of_target(z, ids))
        if keep:
            self.top = z.max(-1).indices
            self.probability = (z - lse[..., None]).exp_()
            # Σ p·z − logsumexp(z): the negative entropy of each position
            self.negative_entropy = torch.linalg.vecdot(self.probability, z) - lse


@torch.inference_mode()
def _score(logits: Tensor, ids: Tensor, reference: _Reference, score: Scores) -> None:
    q = logits.float()
    shape = q.shape[:2]
    flat, probability, top = q.flatten(0, 1), reference.probability.flatten(0, 1), reference.top.flatten()
    lse, dot, agree = (flat.new_empty(len(flat)) for _ in range(3))
    rows = max(1, _aim(_ROWS_BYTES, q.device) // (4 * q.shape[-1]))
    buffer = torch.empty_like(flat[:rows])
    for start in range(0, len(flat), rows):
        part = slice(start, start + rows)
        x = flat[part]
        work = buffer[: len(x)]
        highest = x.amax(-1)
        agree[part] = x.gather(-1, top[part, None])[:, 0] == highest
        torch.sub(x, highest[:, None], out=work)
        lse[part] = work.exp_().sum(-1).log_().add_(highest)
        torch.mul(x, probability[part], out=work)
        dot[part] = work.sum(-1)
    lse, dot, agree = (t.view(shape)[:, :-1] for t in (lse, dot, agree))
    score.nll += _per_window(lse - _of_target(q, ids))
    score.kl += _per_window(reference.negative_entropy[:, :-1] - dot + lse)
    score.agree += agree.sum(1).long().tolist()


def _per_window(values: Tensor) -> list[float]:
    return values.sum(1, dtype=torch.float64).tolist()


def _of_target(logits: Tensor, ids: Tensor) -> Tensor:
    return logits[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]


def _aim(table: Mapping[str, int], device: torch.device) -> int:
    return table.get(device.type, table["cpu"])
