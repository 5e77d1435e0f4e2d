"""From a batch of windows to its loss, KL and top-1 agreement, without holding more logits than are being reduced.

Two ways, with the same results up to rounding.  `Factored` serves the usual model, whose logits are exactly
`head(body(ids))` with a head that is left in full precision: the head is applied to a few rows at a time and their
logits are reduced while they lie in the core's own cache.  With z the full-precision logits, q a lane's, p =
softmax(z), W the head's weight and h the lane's last hidden state,

    KL(p ‖ softmax(q)) = Σ p·z − logsumexp(z) − Σ p·q + logsumexp(q),     Σ p·q = h·(pW) + p·b,

so p itself is never kept: pW, as wide as the model, is computed once for all lanes, and p·b, with the head's bias,
cancels.  That a model is of this kind is tested on its own logits, never assumed.  `Whole` takes the logits as the
model returns them and serves every other model: soft-capped or scaled logits, a quantized head, types narrower than
float32.  It holds the logits of one batch and the full-precision probabilities of the same batch, and widens and
reduces a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ptq_eval.models import LanguageModel

_ROWS_BYTES = {"cpu": 2**21, "cuda": 2**30}
"""Aim for the logits that are reduced at a time."""

_FEWEST_ROWS = 64
"""Below this a matrix product loses its speed, however large the vocabulary."""


@dataclass
class Scores:
    """Per window: the summed negative log-likelihood and KL (nats), and the count of agreeing top-1 tokens."""

    nll: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    agree: list[int] = field(default_factory=list)

    def extend(self, more: Scores) -> None:
        """Append the scores of further windows."""
        self.nll += more.nll
        self.kl += more.kl
        self.agree += more.agree

    def at(self, places: Sequence[int]) -> Scores:
        """The scores at these places, in this order."""
        take = lambda values: [values[i] for i in places] if values else []
        return Scores(take(self.nll), take(self.kl), take(self.agree))


@dataclass(frozen=True)
class Reference:
    """What lanes are compared with: the full-precision model's results on one batch.

    `nll` per window, `top` [tokens] the most likely tokens, `negative_entropy` [tokens]; `mean` is pW [tokens, width]
    for a `Factored` scorer and p [tokens, vocabulary] for a `Whole` one.
    """

    nll: list[float]
    top: Tensor
    negative_entropy: Tensor
    mean: Tensor

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return self.top.nbytes + self.negative_entropy.nbytes + self.mean.nbytes


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
    def loss(self, ids: Tensor) -> list[float]:
        """Negative log-likelihood per window of `ids` [batch, time], of the model as it stands, and nothing else."""
        hidden, targets = self._hidden(ids), _targets(ids)
        nll = hidden.new_empty(len(hidden))
        for part in _parts(len(hidden), self.rows):
            z = self._logits(hidden[part])
            target = z.gather(-1, targets[part, None])[:, 0]
            nll[part] = _logsumexp_(z, z.amax(-1)) - target
        return _per_window(nll, len(ids))

    @torch.inference_mode()
    def reference(self, ids: Tensor) -> Reference:
        """Score the full-precision model on windows `ids` [batch, time], for lanes to be compared with."""
        hidden, targets = self._hidden(ids), _targets(ids)
        mean, top = torch.empty_like(hidden), torch.empty_like(targets)
        lse, nll = hidden.new_empty(len(hidden)), hidden.new_empty(len(hidden))
        for part in _parts(len(hidden), self.rows):
            z = self._logits(hidden[part])
            highest, top[part] = z.max(-1)
            target = z.gather(-1, targets[part, None])[:, 0]
            probability = z.sub_(highest[:, None]).exp_()
            total = probability.sum(-1)
            lse[part] = total.log().add_(highest)
            nll[part] = lse[part] - target
            torch.mm(probability, self.weight, out=mean[part])
            mean[part].div_(total[:, None])
        entropy = torch.linalg.vecdot(hidden, mean) - lse
        return Reference(_per_window(nll, len(ids)), top, entropy, mean)

    @torch.inference_mode()
    def lane(self, ids: Tensor, reference: Reference) -> Scores:
        """Score the model as it stands now on the windows of `reference`."""
        hidden = self._hidden(ids)
        wanted = torch.stack([reference.top, _targets(ids)], dim=1)
        logits = hidden.new_empty(wanted.shape)
        highest, total = hidden.new_empty(len(hidden)), hidden.new_empty(len(hidden))
        for part in _parts(len(hidden), self.rows):
            q = self._logits(hidden[part])
            torch.gather(q, 1, wanted[part], out=logits[part])
            torch.amax(q, -1, out=highest[part])
            torch.sum(q.sub_(highest[part, None]).exp_(), -1, out=total[part])
        lse = total.log_().add_(highest)
        kl = reference.negative_entropy - torch.linalg.vecdot(hidden, reference.mean) + lse
        return _scores(lse - logits[:, 1], kl, logits[:, 0] == highest, len(ids))

    def _hidden(self, ids: Tensor) -> Tensor:
        # The last position predicts nothing that is in the window.
        return self.model.hidden(ids)[:, :-1].flatten(0, 1)

    def _logits(self, hidden: Tensor) -> Tensor:
        return torch.nn.functional.linear(hidden, self.weight, self.bias)


class Whole:
    """Scores batches through the logits that the model returns."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.rows = _rows(model.vocab_size, model.device)

    @torch.inference_mode()
    def loss(self, ids: Tensor) -> list[float]:
        """As `Factored.loss`."""
        z, targets = self._logits(ids), _targets(ids)
        nll = z.new_empty(len(z), dtype=torch.float32)
        for part in _parts(len(z), self.rows):
            x = z[part].float()
            nll[part] = x.logsumexp(-1) - x.gather(-1, targets[part, None])[:, 0]
        return _per_window(nll, len(ids))

    @torch.inference_mode()
    def reference(self, ids: Tensor) -> Reference:
        """As `Factored.reference`."""
        z, targets = self._logits(ids), _targets(ids)
        # Full-precision logits are not needed once they are probabilities: these take their place.
        probability = z if z.dtype is torch.float32 else torch.empty_like(z, dtype=torch.float32)
        nll, entropy = (probability.new_empty(len(z)) for _ in range(2))
        top = torch.empty_like(targets)
        for part in _parts(len(z), self.rows):
            x = z[part].float()
            lse = x.logsumexp(-1)
            top[part] = x.argmax(-1)
            nll[part] = lse - x.gather(-1, targets[part, None])[:, 0]
            p = (x - lse[:, None]).exp_()
            entropy[part] = torch.linalg.vecdot(p, x) - lse
            probability[part] = p
        return Reference(_per_window(nll, len(ids)), top, entropy, probability)

    @torch.inference_mode()
    def lane(self, ids: Tensor, reference: Reference) -> Scores:
        """As `Factored.lane`."""
        q, targets = self._logits(ids), _targets(ids)
        nll, kl, agree = (q.new_empty(len(q), dtype=torch.float32) for _ in range(3))
        for part in _parts(len(q), self.rows):
            x = q[part].float()
            lse = x.logsumexp(-1)
            agree[part] = x.gather(-1, reference.top[part, None])[:, 0] == x.amax(-1)
            nll[part] = lse - x.gather(-1, targets[part, None])[:, 0]
            kl[part] = reference.negative_entropy[part] - torch.linalg.vecdot(reference.mean[part], x) + lse
        return _scores(nll, kl, agree, len(ids))

    def _logits(self, ids: Tensor) -> Tensor:
        """[tokens, vocabulary], the last position of every window left out; a view where there is one window."""
        logits = self.model.logits(ids)[:, :-1]
        return logits[0] if len(ids) == 1 else logits.flatten(0, 1)


def _logsumexp_(z: Tensor, highest: Tensor) -> Tensor:
    """logsumexp of the rows of `z`, which is overwritten, given their maxima: the arithmetic of `reference`."""
    return z.sub_(highest[:, None]).exp_().sum(-1).log_().add_(highest)


def _targets(ids: Tensor) -> Tensor:
    return ids[:, 1:].flatten()


def _scores(nll: Tensor, kl: Tensor, agree: Tensor, windows: int) -> Scores:
    counts = agree.view(windows, -1).sum(1).long().tolist()
    return Scores(_per_window(nll, windows), _per_window(kl, windows), counts)


def _per_window(values: Tensor, windows: int) -> list[float]:
    return values.view(windows, -1).sum(1, dtype=torch.float64).tolist()


def _parts(total: int, rows: int) -> list[slice]:
    return [slice(start, start + rows) for start in range(0, total, rows)]


def _rows(vocab: int, device: torch.device) -> int:
    return max(_FEWEST_ROWS, _ROWS_BYTES.get(device.type, _ROWS_BYTES["cpu"]) // (4 * vocab))
