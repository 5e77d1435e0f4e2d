"""Loss of a model, and of the same model under other weights, window by window.

Each batch of windows passes through the full-precision model once, for all lanes; then each lane's weights are put
in place by reference, and the same batch gives its loss, KL(full precision ‖ lane) and top-1 agreement (`scoring`).
Sums are per window, because the window is the unit that the paired standard error resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ptq_eval.models import LanguageModel
from ptq_eval.scoring import Scores, scorer

_BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}
_LOGIT_BYTES = {"cpu": 2**28, "cuda": 2**31}


def batch_size(model: LanguageModel, seq_len: int) -> int:
    """Windows per batch: a function of shapes alone, so that results do not depend on free memory."""
    kind = model.device.type if model.device.type in _BATCH_TOKENS else "cpu"
    tokens = min(_BATCH_TOKENS[kind], _LOGIT_BYTES[kind] // (4 * model.vocab_size))
    return max(1, tokens // seq_len)


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
    ids = ids.to(device=model.device, dtype=torch.long)
    batch = batch or batch_size(model, ids.shape[1])
    full, scores = Scores(), [Scores() for _ in lanes]
    parameters = [model.parameters_of(lane) for lane in lanes]
    judge = scorer(model, ids[:1])
    for rows in ids.split(batch):
        judge.reference(rows, full)
        if tick:
            tick(len(rows))
        for lane, score in zip(parameters, scores):
            with model.carrying(lane):
                judge.lane(rows, score)
            if tick:
                tick(len(rows))
    return full, scores
