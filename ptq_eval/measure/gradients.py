"""Gradients of the loss by the quantizable weights, which need no parameter to require gradients.

Hooks keep each layer's input x and output of one forward pass; with g the gradient of the loss by that output, the
gradient by the weight is Σ g xᵀ over tokens.  The graph starts at the embedding's output.  There is no gradient
checkpointing: a pass keeps its activations, so windows pass a few at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ptq_eval.measure.kept import Sums
from ptq_eval.models.language_model import LanguageModel

Gradients = dict[str, tuple[Tensor, Tensor]]
"""{layer: (inputs [tokens, in], gradients of the summed loss by its outputs [tokens, out])}, float32."""


def mean_gradient(
    model: LanguageModel,
    ids: Tensor,
    *,
    batch: int = 1,
    tick: Callable[[float], None] | None = None,
    sums: Sums | None = None,
) -> dict[str, Tensor]:
    """∇L of the mean loss on windows `ids` [windows, time] with their own labels: {layer: [out, in]}, float32.

    `batch` windows pass together; what layers do with a batch (experts of limited capacity) is not undone.  A layer
    that no token reaches has the gradient 0.  tick(windows) after each batch.  `sums` is where it is kept as it grows.
    """
    mean = {name: torch.zeros_like(model.weight(name), dtype=torch.float32) for name in model.matrices()}
    by_table = None if model.embedding is None else torch.zeros_like(model.weight(model.embedding))
    tokens = ids.shape[0] * (ids.shape[1] - 1)
    batches = ids.to(device=model.device, dtype=torch.long).split(batch)
    done = sums.resume(mean) if sums is not None else 0
    for number, rows in enumerate(batches[done:], done + 1):
        for found in gradients(model, rows, lambda _, rows=rows: rows[:, 1:], by_table=by_table):
            for name, (inputs, outputs) in found.items():
                mean[name].addmm_(outputs.T, inputs, alpha=1 / tokens)
        if by_table is not None and model.embedding is not None:
            mean[model.embedding].add_(by_table, alpha=1 / tokens)
            by_table.zero_()
        if sums is not None:
            sums.keep(mean, number, last=number == len(batches))
        if tick:
            tick(len(rows))
    return mean


def gradients(
    model: LanguageModel,
    ids: Tensor,
    labels: Callable[[Tensor], Tensor],
    draws: int = 1,
    by_table: Tensor | None = None,
) -> Iterator[Gradients]:
    """Gradients of the loss summed over tokens of `ids` [batch, time], once for each draw of labels.

    `labels(probability [batch, time − 1, vocabulary])` returns [batch, time − 1].  A layer that no token reaches is
    absent; one that is called twice has the tokens of both calls.  To `by_table` [vocabulary, width], if there is one,
    the gradients with respect to the embedding's weight are added up over all uses of the tensor.
    """
    calls: list[tuple[str, Tensor, Tensor]] = []

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _module, args, out: calls.append((name, args[0].detach(), out))

    handles = [module.register_forward_hook(keep(name)) for name, module in model.linears().items()]
    embedding: Any = model.module.get_input_embeddings()  # type: ignore[operator]
    table: Tensor = embedding.weight
    handles.append(embedding.register_forward_hook(lambda _module, _args, out: out.requires_grad_(True)))
    table.requires_grad_(by_table is not None)
    try:
        with torch.enable_grad():
            logits = model.module(input_ids=ids, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
        table.requires_grad_(False)
    by = [*(out for _, _, out in calls), *([] if by_table is None else [table])]
    probability = logits.detach().float().softmax(-1)
    for draw in range(draws):
        last = draw + 1 == draws
        wanted = labels(probability[:, :-1])[..., None]
        by_logits = probability if last else probability.clone()  # softmax minus one at the label
        by_logits[:, :-1].scatter_add_(-1, wanted, torch.full_like(wanted, -1.0, dtype=torch.float32))
        by_logits[:, -1] = 0.0  # the last position predicts nothing that is in the window
        table.requires_grad_(by_table is not None)
        grad = torch.autograd.grad
        by_output = grad(logits, by, by_logits.to(logits.dtype), retain_graph=not last, allow_unused=True)
        table.requires_grad_(False)
        if by_table is not None:
            by_table += by_output[-1]
        yield _by_layer(calls, by_output)


def drawn(probability: Tensor, generator: torch.Generator) -> Tensor:
    """One label for each position, [batch, time], by the `probability` [batch, time, vocabulary]."""
    cumulated = probability.cumsum(-1)
    total = cumulated[..., -1:]
    place = total * torch.rand(total.shape, generator=generator, device=total.device)
    return torch.searchsorted(cumulated, place, right=True).squeeze(-1).clamp_(max=probability.shape[-1] - 1)


def _by_layer(calls: Sequence[tuple[str, Tensor, Tensor]], by_output: Sequence[Tensor | None]) -> Gradients:
    found: Gradients = {}
    for (name, inputs, _), gradient in zip(calls, by_output):
        if gradient is None:
            continue
        pair = inputs.flatten(0, -2).float(), gradient.flatten(0, -2).float()
        before = found.get(name)
        found[name] = pair if before is None else (torch.cat([before[0], pair[0]]), torch.cat([before[1], pair[1]]))
    return found
