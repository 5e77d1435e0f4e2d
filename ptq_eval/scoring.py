"""From a batch of windows to its loss, KL and top-1 agreement, without holding more logits than are being reduced.

Two ways, with the same results up to rounding.  `Factored` serves the usual model, whose logits are exactly
`head(body(ids))` with a head that is left in full precision: the head is applied to a few rows at a time and their
logits are reduced while they lie in the core's own cache.  With z the full-precision logits, q a lane's, p =
softmax(z), W the head's weight and h the lane's last hidden state,

    KL(p ‖ softmax(q)) = Σ p·z − logsumexp(z) − Σ p·q + logsumexp(q),     Σ p·q = h·(pW) + p·b,

so p itself is never kept: pW, as wide as the model, is computed once for all lanes, and p·b, with the head's bias,
cancels.  That a model is of this kind is tested on its own logits, never assumed.  `Whole` takes the logits as the
model returns them and serves every other model: soft-capped or scaled logits, a quantized head, types narrower than
float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ptq_eval.models import LanguageModel

_ROWS_BYTES = {"cpu": 2**20, "cuda": 2**30}
"""Aim for the logits that are reduced at a time."""

_FEWEST_ROWS = 64
"""Below this a matrix product loses its speed, however large the vocabulary."""


@dataclass
class Scores:
    """Per window: the summed negative log-likelihood and KL (nats), and the count of agreeing top-1 tokens."""

    nll: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    agree: list[int] = field(default_factory=list)


def scorer(model: LanguageModel, ids: Tensor) -> Factored | Whole:
    """The way that fits the model; `ids` [1, time] is a window to test it on."""
    factored = not model.include_head and model.module.dtype is torch.float32 and model.factors(ids[:1, :32])
    return Factored(model) if factored else Whole(model)


class Factored:
    """Scores batches through the model's body and head."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        head: Any = model.module.get_output_embeddings()  # type: ignore[operator]
        self.weight, self.bias = head.weight, head.bias
        self.rows = _rows(model.vocab_size, model.device)

    @torch.inference_mode()
    def reference(self, ids: Tensor, scores: Scores) -> None:
        """Score the full-precision model on windows `ids` [batch, time] and keep what lanes are compared with."""
        hidden = self._hidden(ids)
        self.target = ids[:, 1:].flatten()
        self.mean_row = torch.empty_like(hidden)
        self.top = torch.empty_like(self.target)
        lse, nll = hidden.new_empty(len(hidden)), hidden.new_empty(len(hidden))
        for part in _parts(len(hidden), self.rows):
            z = self._logits(hidden[part])
            highest, self.top[part] = z.max(-1)
            target = z.gather(-1, self.target[part, None])[:, 0]
            probability = z.sub_(highest[:, None]).exp_()
            total = probability.sum(-1)
            lse[part] = total.log().add_(highest)
            nll[part] = lse[part] - target
            probability /= total[:, None]
            self.mean_row[part] = probability @ self.weight
        self.negative_entropy = self._dot(hidden) - lse
        scores.nll += _per_window(nll, len(ids))

    @torch.inference_mode()
    def lane(self, ids: Tensor, scores: Scores) -> None:
        """Score the model as it stands now on the windows that `reference` saw last."""
        hidden = self._hidden(ids)
        lse, nll, agree = (hidden.new_empty(len(hidden)) for _ in range(3))
        for part in _parts(len(hidden), self.rows):
            q = self._logits(hidden[part])
            highest = q.amax(-1)
            agree[part] = q.gather(-1, self.top[part, None])[:, 0] == highest
            target = q.gather(-1, self.target[part, None])[:, 0]
            lse[part] = q.sub_(highest[:, None]).exp_().sum(-1).log_().add_(highest)
            nll[part] = lse[part] - target
        scores.nll += _per_window(nll, len(ids))
        scores.kl += _per_window(self.negative_entropy - self._dot(hidden) + lse, len(ids))
        scores.agree += agree.view(len(ids), -1).sum(1).long().tolist()

    def _hidden(self, ids: Tensor) -> Tensor:
        # The last position predicts nothing that is in the window.
        return self.model.hidden(ids)[:, :-1].flatten(0, 1)

    def _logits(self, hidden: Tensor) -> Tensor:
        return torch.nn.functional.linear(hidden, self.weight, self.bias)

    def _dot(self, hidden: Tensor) -> Tensor:
        return torch.linalg.vecdot(hidden, self.mean_row)


class Whole:
    """Scores batches through the logits that the model returns."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.rows = _rows(model.vocab_size, model.device)

    @torch.inference_mode()
    def reference(self, ids: Tensor, scores: Scores) -> None:
        """As `Factored.reference`."""
        z = self._logits(ids)
        self.target = ids[:, 1:].flatten()
        lse = z.logsumexp(-1)
        self.top = z.max(-1).indices
        self.probability = (z - lse[:, None]).exp_()
        self.negative_entropy = torch.linalg.vecdot(self.probability, z) - lse
        scores.nll += _per_window(lse - z.gather(-1, self.target[:, None])[:, 0], len(ids))

    @torch.inference_mode()
    def lane(self, ids: Tensor, scores: Scores) -> None:
        """As `Factored.lane`."""
        q = self._logits(ids)
        nll, kl, agree = (q.new_empty(len(q)) for _ in range(3))
        for part in _parts(len(q), self.rows):
            x = q[part].float()
            lse = x.logsumexp(-1)
            agree[part] = x.gather(-1, self.top[part, None])[:, 0] == x.amax(-1)
            nll[part] = lse - x.gather(-1, self.target[part, None])[:, 0]
            kl[part] = self.negative_entropy[part] - torch.linalg.vecdot(self.probability[part], x) + lse
        scores.nll += _per_window(nll, len(ids))
        scores.kl += _per_window(kl, len(ids))
        scores.agree += agree.view(len(ids), -1).sum(1).long().tolist()

    def _logits(self, ids: Tensor) -> Tensor:
        return self.model.logits(ids)[:, :-1].flatten(0, 1).float()


def _per_window(values: Tensor, windows: int) -> list[float]:
    return values.view(windows, -1).sum(1, dtype=torch.float64).tolist()


def _parts(total: int, rows: int) -> list[slice]:
    return [slice(start, start + rows) for start in range(0, total, rows)]


def _rows(vocab: int, device: torch.device) -> int:
    return max(_FEWEST_ROWS, _ROWS_BYTES.get(device.type, _ROWS_BYTES["cpu"]) // (4 * vocab))
