"""How large δ may be by chance: through one particular rounding, and through the arithmetic.

**Rounding.**  To first order δ moves by ⟨∇L, ε⟩ with the rounding error ε, a sum that would have another value had
the same weights been rounded in another, equally good way: from another offset of the grid, or after another search for
scales.  Rows of a matrix are rounded independently of each other, while within a row one error may compensate another
(GPTQ), so the equally good roundings are modelled as sign flips of whole rows of ε.  Over them ⟨∇L, ε⟩ has mean 0 and

    variance  Σ_rows (Σ_columns g ε)²,    g = ∇L,

which for independent errors has the expectation Σ g² ε², and needs nothing of the quantizer but the weights that it
made.  g is the gradient of the text, not of a sample of it: the square of a sample's gradient is too large by the
sample's own variance.  Two samples of other windows have independent errors, so the product of their two gradients is
unbiased; negative values count as zero.

The second order ½ εᵀFε differs between roundings too, and by more than the first where the slope is small or ε is large
(`second_order`).  Its mean is the KL divergence from the full-precision model, which every variant's evaluation gives;
its standard deviation is a share of that mean, which is a property of the checkpoint and recorded beside its
full-precision loss.  Both are added in squares where results are tabulated.  Higher orders are neglected.  What
they change first is the slope: averaged over roundings, the loss has another gradient than at full precision.  At 2 and
3 bits the floor is therefore low, 0.57 to 0.82 of the measured spread (docs/log.md); the gradient at a rounded model
would cost a pass backward for every bit-width.

**Arithmetic.** Some windows are scored again in full precision, in smaller batches and on one thread; a model in a type
narrower than float32, in float32 too.  With d the differences per window, where k windows are scored again and N are
evaluated, the loss moves by a common part of variance d̄² − s²/k (not below zero) and by the mean of N independent
ones, of variance s²/N; δ is the difference of two losses, hence twice that.  The larger alternative counts.

Both are skipped for a model that is read from disk, and where memory is short; the reason takes their place.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ptq_eval.measure import second_order
from ptq_eval.measure.evaluate import batch_size, evaluate
from ptq_eval.measure.gradients import mean_gradient
from ptq_eval.measure.kept import Kept, once
from ptq_eval.measure.memory import out_of_memory
from ptq_eval.measure.session import Session
from ptq_eval.measure.variants import Variant
from ptq_eval.models.language_model import LanguageModel
from quantizers.parallel import one_thread

Found = TypeVar("Found")

GRADIENT_WINDOWS = 32
"""Windows behind a checkpoint's gradients: a constant, so that no number depends on what else is measured."""

RESCORED_WINDOWS = 16
"""Windows that are scored again."""

_GRADIENT_TOKENS = {"cpu": 1024, "cuda": 8192}
"""Tokens of one backward pass, whose activations are kept."""


class Unmeasured(StrEnum):
    """Why a part of the noise floor is not known."""

    OFFLOADED = "offloaded"
    MEMORY = "memory"
    NO_GRADIENT = "no_gradient"
    ONE_WINDOW = "one_window"


def places(count: int, of: int) -> list[int]:
    """At most `count` of the indices 0 … of − 1, evenly spaced."""
    return sorted({i * of // count for i in range(count)}) if of > count else list(range(of))


@dataclass(frozen=True)
class Slopes:
    """Two independent estimates of ∇L of the text: {layer: [out, in]} each, float32."""

    first: Mapping[str, Tensor]
    second: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: LanguageModel, ids: Tensor, kept: Kept | None = None) -> Slopes:
        """From windows `ids` [n, time], every second one for each estimate."""
        batch = _windows_per_pass(model, ids)

        def mean(number: int) -> Mapping[str, Tensor]:
            sums = None if kept is None else kept.sums(f"slope {number}")
            gradient = mean_gradient(model, ids[number::2], batch=batch, sums=sums)
            return gradient if sums is None else sums

        return cls(mean(0), mean(1))

    def rounding(self, model: LanguageModel, weights: Mapping[str, Tensor]) -> float:
        """Standard deviation of δ over equally good roundings like these `weights` {layer: [out, in]}, nats per token.

        To first order; see the module.
        """
        variance = 0.0
        for name, weight in weights.items():
            before = model.weight(name)
            error = weight.to(before.device).float() - before.float()
            rows = [torch.einsum("oi,oi->o", own[name], error) for own in (self.first, self.second)]
            variance += float(rows[0].double() @ rows[1].double())
        return math.sqrt(max(0.0, variance))


class Floor:
    """The noise floor of one checkpoint in a session: what needs gradients, computed at once, and what that says of
    variants.  `full`: whether the full-precision model is measured, too."""

    def __init__(self, session: Session, *, full: bool = True) -> None:
        self.session = session
        count = second_order.WINDOWS
        self.share = _measured(session, second_order.share, count, count) if full else Unmeasured.MEMORY
        self.slopes = _measured(session, Slopes.of, GRADIENT_WINDOWS, 2)

    @property
    def nbytes(self) -> float:
        """Memory that the slopes take."""
        waits = isinstance(self.slopes, Unmeasured) or self.session.kept is not None
        return 0.0 if waits else 2.0 * _gradient_bytes(self.session.model)

    def rounding(self, variant: Variant) -> dict[str, Any]:
        """What a quantized record says of it: {"rounding": nats per token}, or {"rounding_unmeasured": why}."""
        if isinstance(self.slopes, Unmeasured):
            return {"rounding_unmeasured": self.slopes.value}
        deviation = partial(self.slopes.rounding, self.session.model, variant.weights)
        return {"rounding": once(variant.kept, f"{variant.name} rounding", deviation)}

    def second_order(self) -> dict[str, Any]:
        """What a full-precision record says of it: {"second_order": the standard deviation of the second order over
        roundings, as a share of its mean}, or {"second_order_unmeasured": why}."""
        if isinstance(self.share, Unmeasured):
            return {"second_order_unmeasured": self.share.value}
        return {"second_order": self.share}

    def numerics(self, nll: Sequence[float]) -> dict[str, Any]:
        """What a full-precision record with these sums per window says: {"numerics": …} or {"numerics_unmeasured": …}.

        In nats per token.
        """
        session = self.session
        if session.offloaded:
            return {"numerics_unmeasured": Unmeasured.OFFLOADED.value}
        chosen = places(RESCORED_WINDOWS, len(nll))
        ids = session.evaluation[chosen]
        before = np.asarray(nll)[chosen]
        losses = once(session.kept, "again", partial(_again, session, ids))
        if losses is None:
            return {"numerics_unmeasured": Unmeasured.MEMORY.value}
        tokens = ids.shape[1] - 1
        return {"numerics": max(moved((np.asarray(again) - before) / tokens, len(nll)) for again in losses)}


def moved(differences: np.ndarray, evaluated: int) -> float:
    """Standard deviation of δ by arithmetic, from `differences` per window [k] of one loss of `evaluated` windows."""
    mean, variance = float(differences.mean()), float(differences.var(ddof=1)) if len(differences) > 1 else 0.0
    common = max(0.0, mean**2 - variance / len(differences))
    return math.sqrt(2 * (common + variance / evaluated))


def _measured(
    session: Session, what: Callable[[LanguageModel, Tensor, Kept | None], Found], windows: int, gradients: int
) -> Found | Unmeasured:
    """What needs the gradients of some `windows`, so many of them at once, of which one is in memory where work is
    kept."""
    model, ids = session.model, session.evaluation
    if session.kept is not None:
        gradients = 1
    if session.offloaded:
        return Unmeasured.OFFLOADED
    if len(ids) < 2:
        return Unmeasured.ONE_WINDOW
    whole = sum(parameter.nbytes for parameter in model.module.parameters())
    variant = sum(model.weight_bytes(name) for name in model.matrices())
    logits = 3 * 4 * _windows_per_pass(model, ids) * ids.shape[1] * model.vocab_size  # with their softmax and gradient
    if whole + variant + logits + gradients * _gradient_bytes(model) > session.budget.total:
        return Unmeasured.MEMORY
    try:
        return what(model, ids[places(windows, len(ids))], session.kept)
    except (RuntimeError, MemoryError) as error:  # NotImplementedError, of a layer without backward pass, is one
        return Unmeasured.MEMORY if out_of_memory(error) else Unmeasured.NO_GRADIENT


def _windows_per_pass(model: LanguageModel, ids: Tensor) -> int:
    return max(1, _GRADIENT_TOKENS.get(model.device.type, _GRADIENT_TOKENS["cpu"]) // ids.shape[1])


def _gradient_bytes(model: LanguageModel) -> int:
    return sum(4 * model.weight(name).numel() for name in model.matrices())


def _again(session: Session, ids: Tensor) -> list[list[float]] | None:
    """The sums per window of `ids` by each other arithmetic; None where memory does not suffice."""
    model = session.model
    narrow = any(parameter.dtype is not torch.float32 for parameter in model.module.parameters())
    size = sum(parameter.nbytes + 4 * parameter.numel() for parameter in model.module.parameters())
    if narrow and size > session.budget.total:
        return None
    batch = max(1, min(batch_size(model, ids.shape[1]), len(ids)) // 2)
    # Not several threads instead of one: where one core is all that a process has, its threads would wait for each
    # other for a hundred times as long as they compute.
    with one_thread() if model.device.type == "cpu" else nullcontext():
        found = [evaluate(model, ids, batch=batch)[0].nll]
    if narrow:
        exact = copy.deepcopy(model.module).float()
        options: dict[str, Any] = {"name": model.name, "outside": model.outside}
        found.append(evaluate(LanguageModel(exact, **options), ids)[0].nll)
    return found
