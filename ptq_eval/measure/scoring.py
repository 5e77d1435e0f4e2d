"""From a batch of windows to its loss, KL and top-1 agreement, without keeping more logits than necessary.

A forward pass leaves an `Output`, from which blocks of logits, some tokens by some of the vocabulary, are read as
often as needed and reduced (`kernels`) before they leave the core's cache.  There are two kinds.  `Hidden` serves the
usual model, whose logits are exactly `head(body(ids))`: it keeps the last hidden states and the head that follows
them, quantized or not, and a block of logits is a matrix product.  Hidden states are small, so the outputs of many
variants are compared with full precision at once, and the full-precision logits are computed once for all of them.
Whether a model is of this kind is tested on its own logits, never assumed.  `Logits` serves every other model
(soft-capped or scaled logits): it keeps a batch's logits as the model returns them, in the model's type, for two
models at a time.

Logits of a type narrower than float32 are rounded to that type, as the model returns them; they are widened block by
block, and nothing after them is rounded to that type.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ptq_eval.measure.kernels.sums import Sums
from ptq_eval.measure.tokens import per_token
from ptq_eval.models.language_model import LanguageModel
from quantizers import kernels
from quantizers.parallel import over_rows

_BLOCK = {"cpu": (128, 2048), "cuda": (2048, 16384)}
"""Tokens and vocabulary of a block: on a CPU two of them in float32 fill a second-level cache."""

_KEPT_BYTES = {"cpu": 2**26, "cuda": 2**30}
"""Target for the outputs of variants that are compared at once."""

_TEST_TOKENS = 8
"""Tokens on which to test whether the logits are the head of the last hidden states."""


@dataclass
class Scores:
    """Per window: the summed negative log-likelihood and KL (nats), the count of agreeing top-1 tokens, and what
    single tokens say (`tokens.per_token`), where that is wanted."""

    nll: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    agree: list[int] = field(default_factory=list)
    tokens: list[bytes] = field(default_factory=list)

    def extend(self, more: Scores) -> None:
        """Append the scores of further windows."""
        self.nll += more.nll
        self.kl += more.kl
        self.agree += more.agree
        self.tokens += more.tokens

    def at(self, indices: Sequence[int]) -> Scores:
        """The scores at these indices, in this order."""
        take = lambda values: [values[i] for i in indices] if values else []
        return Scores(*map(take, (self.nll, self.kl, self.agree, self.tokens)))

    def to_lists(self) -> list[list[Any]]:
        """As lists of JSON; `from_lists` is its inverse."""
        return [self.nll, self.kl, self.agree, [base64.b64encode(window).decode() for window in self.tokens]]

    @classmethod
    def from_lists(cls, lists: Sequence[list[Any]]) -> Scores:
        """The inverse of `to_lists`."""
        nll, kl, agree, tokens = lists
        return cls(nll, kl, agree, [base64.b64decode(window) for window in tokens])


@dataclass(frozen=True)
class Hidden:
    """The last hidden states [tokens, width] of a batch, and the head after them: weight [vocabulary, width], bias."""

    states: Tensor
    weight: Tensor
    bias: Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.states.nbytes

    def block(self, rows: slice, columns: slice, out: Tensor) -> None:
        """The logits of some tokens and some of the vocabulary, in float32."""
        own = out if out.dtype is self.states.dtype else torch.empty_like(out, dtype=self.states.dtype)
        states, weight = self.states[rows], self.weight[columns].T
        if self.bias is None:
            torch.mm(states, weight, out=own)
        else:
            torch.addmm(self.bias[columns], states, weight, out=own)
        if own is not out:
            out.copy_(own)


@dataclass(frozen=True)
class Logits:
    """The logits [tokens, vocabulary] of a batch."""

    logits: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.logits.nbytes

    def block(self, rows: slice, columns: slice, out: Tensor) -> None:
        """The logits of some tokens and some of the vocabulary, in float32."""
        out.copy_(self.logits[rows, columns])


Output = Hidden | Logits


def scorer(model: LanguageModel, ids: Tensor) -> Factored | Whole:
    """How to score this model; `ids` [1, time] is a window to test it on."""
    return Factored(model) if model.factors(ids[:1, :_TEST_TOKENS]) else Whole(model)


class Factored:
    """Scores batches through the model's body and head."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.head: Any = model.module.get_output_embeddings()  # type: ignore[operator]

    @torch.inference_mode()
    def output(self, ids: Tensor, read: Callable[[Tensor], Tensor] | None = None) -> Hidden:
        """The output of the model with its current weights for windows `ids` [batch, time].

        The head reads what `read` makes of the hidden states [batch, time, width], where that is given.
        """
        hidden = self.model.hidden(ids)
        # The last position predicts nothing that is in the window.
        states = (read(hidden) if read is not None else hidden)[:, :-1].flatten(0, 1)
        return Hidden(states, self.head.weight, self.head.bias)

    def variants_at_once(self, output: Output) -> int:
        """How many variants with outputs of this size are compared at once."""
        return max(1, _of(_KEPT_BYTES, self.model.device) // output.nbytes)

    def working_bytes(self, batch: int, time: int) -> float:
        """Bytes that outputs take while a batch is scored."""
        one: float = batch * time * self.model.width * self.model.module.dtype.itemsize  # type: ignore[operator,union-attr]
        return one + max(one, _of(_KEPT_BYTES, self.model.device))


class Whole:
    """Scores batches through the logits that the model returns."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    @torch.inference_mode()
    def output(self, ids: Tensor, read: Callable[[Tensor], Tensor] | None = None) -> Logits:
        """As `Factored.output`; a view of the model's logits where there is one window, whose head ran in the model."""
        logits = self.model.logits(ids)[:, :-1]
        return Logits(logits[0] if len(ids) == 1 else logits.flatten(0, 1))

    def variants_at_once(self, output: Output) -> int:
        """As `Factored.variants_at_once`: one, beside full precision."""
        return 1

    def working_bytes(self, batch: int, time: int) -> float:
        """As `Factored.working_bytes`: the logits of two models, and a copy where a model scales or caps them."""
        itemsize: int = self.model.module.dtype.itemsize  # type: ignore[assignment,union-attr]
        return 3.0 * batch * time * self.model.vocab_size * itemsize


def compare(
    ids: Tensor, full: Output, variants: Sequence[Output] = (), *, tokens: bool = False
) -> tuple[list[float], list[Scores]]:
    """Score outputs of windows `ids` [batch, time]: (full-precision loss per window, one Scores per variant).

    `tokens`: whether the scores say what single tokens do.
    To the last bit, a variant's scores do not depend on the other variants, nor the full-precision loss on any of them.
    """
    targets = ids[:, 1:].flatten()
    device, count = targets.device, len(targets)
    sums = [Sums.zero(count, device) for _ in range(1 + len(variants))]
    rows, columns = _of(_BLOCK, device)
    part = lambda first, last: _reduce(targets, [full, *variants], sums, (first, last), columns)
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if device.type == "cpu":
        over_rows(part, count, threads, multiple=rows)
    else:
        part(0, count)
    before, windows, scores = sums[0].nll(), len(ids), list[Scores]()
    for each in sums[1:]:
        after, kl = each.nll(), sums[0].kl(each)
        agree: list[int] = (each.top == each.highest).view(windows, -1).sum(1).tolist()
        single = per_token(kl, before, after, windows) if tokens else []
        scores.append(Scores(_per_window(after, windows), _per_window(kl, windows), agree, single))
    return _per_window(before, windows), scores


@torch.inference_mode()
def _reduce(
    targets: Tensor, outputs: Sequence[Output], sums: Sequence[Sums], between: tuple[int, int], columns: int
) -> None:
    """Reduce all logits of the tokens in the range `between`, block by block."""
    device, (first, last) = targets.device, between
    kernel, high = fastest(device), _of(_BLOCK, device)[0]
    vocabulary = _vocabulary(outputs[0])
    buffers = torch.empty((2, min(high, last - first) * min(columns, vocabulary)), device=device)
    for start in range(first, last, high):
        rows = slice(start, min(start + high, last))
        parts, wanted = [each.part(rows) for each in sums], targets[rows]
        for begin in range(0, vocabulary, columns):
            block = slice(begin, min(begin + columns, vocabulary))
            shape = (rows.stop - rows.start, block.stop - block.start)
            z, e = (each[: shape[0] * shape[1]].view(shape) for each in buffers)
            outputs[0].block(rows, block, z)
            kernel.full_precision(z, e if len(outputs) > 1 else None, wanted, begin, parts[0])
            for output, part in zip(outputs[1:], parts[1:]):
                output.block(rows, block, z)
                kernel.variant(z, e, wanted, begin, parts[0], part)


def _vocabulary(output: Output) -> int:
    return len(output.weight) if isinstance(output, Hidden) else output.logits.shape[1]


def _per_window(values: Tensor, windows: int) -> list[float]:
    return values.view(windows, -1).sum(1).tolist()


def _of(sizes: dict[str, Any], device: torch.device) -> Any:
    return sizes.get(device.type, sizes["cpu"])


def fastest(device: torch.device) -> ModuleType:
    """The module with the fastest inner loops for a device."""
    if kernels.backend(device) == "numba":
        from ptq_eval.measure.kernels import cpu

        return cpu
    from ptq_eval.measure.kernels import plain

    return plain
