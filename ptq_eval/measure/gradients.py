"""Gradients of the loss by the quantizable weights, which need no parameter to require gradients.

Hooks keep each layer's input x and output of one forward pass; with g the gradient of the loss by that output, the
gradient by the weight is Σ g xᵀ over tokens.  The graph starts at the embedding's output.  There is no gradient
checkpointing: a pass keeps its activations, so windows pass a few at a time; a layer's input can be dropped as soon as
its gradient is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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

    def add(name: str, inputs: Tensor, outputs: Tensor) -> None:
        mean[name].addmm_(outputs.T, inputs, alpha=1 / tokens)

    batches = ids.to(device=model.device, dtype=torch.long).split(batch)
    done = sums.resume(mean) if sums is not None else 0
    for number, rows in enumerate(batches[done:], done + 1):
        for rest in gradients(model, rows, lambda _, rows=rows: rows[:, 1:], by_table=by_table, take=add):
            for name, (inputs, outputs) in rest.items():  # where one of several calls was not reached
                add(name, inputs, outputs)
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
    take: Callable[[str, Tensor, Tensor], None] | None = None,
) -> Iterator[Gradients]:
    """Gradients of the loss summed over tokens of `ids` [batch, time], once for each draw of labels.

    `labels(probability [batch, time − 1, vocabulary])` returns [batch, time − 1].  A layer that no token reaches is
    absent; one that is called twice has the tokens of both calls.  To `by_table` [vocabulary, width], if there is one,
    the gradients with respect to the embedding's weight are added up over all uses of the tensor.  With `take`, a
    layer with all its gradients is handed to take(name, inputs, gradients) during the pass back, and not yielded.
    """
    calls: dict[str, list[_Call]] = {}
    starts: list[Tensor] = []

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _module, args, out: calls.setdefault(name, []).append(_Call.of(args[0].detach(), out, name, done))

    def done(name: str) -> None:
        if take is not None and all(call.gradient is not None for call in calls[name]):
            take(name, *_joined(calls.pop(name)))

    def begin(_module: nn.Module, _args: Any, out: Tensor) -> None:
        starts.append(out.requires_grad_(True))

    handles = [module.register_forward_hook(keep(name)) for name, module in model.linears().items()]
    embedding: Any = model.module.get_input_embeddings()  # type: ignore[operator]
    table: Tensor = embedding.weight
    handles.append(embedding.register_forward_hook(begin))
    table.requires_grad_(by_table is not None)
    try:
        with torch.enable_grad():
            logits = model.module(input_ids=ids, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
        table.requires_grad_(False)
    by = starts if by_table is None else [table]
    probability = logits.detach().float().softmax(-1)
    for draw in range(draws):
        last = draw + 1 == draws
        wanted = labels(probability[:, :-1])[..., None]
        by_logits = probability if last else probability.clone()  # softmax minus one at the label
        by_logits[:, :-1].scatter_add_(-1, wanted, torch.full_like(wanted, -1.0, dtype=torch.float32))
        by_logits[:, -1] = 0.0  # the last position predicts nothing that is in the window
        table.requires_grad_(by_table is not None)
        grad = torch.autograd.grad
        found = grad(logits, by, by_logits.to(logits.dtype), retain_graph=not last, allow_unused=True)
        table.requires_grad_(False)
        if by_table is not None:
            by_table += found[0]
        reached = {name: [call for call in own if call.gradient is not None] for name, own in calls.items()}
        yield {name: _joined(own) for name, own in reached.items() if own}
        for own in reached.values():
            for call in own:
                call.gradient = None


def drawn(probability: Tensor, generator: torch.Generator) -> Tensor:
    """One label for each position, [batch, time], by the `probability` [batch, time, vocabulary]."""
    cumulated = probability.cumsum(-1)
    total = cumulated[..., -1:]
    place = total * torch.rand(total.shape, generator=generator, device=total.device)
    return torch.searchsorted(cumulated, place, right=True).squeeze(-1).clamp_(max=probability.shape[-1] - 1)


@dataclass
class _Call:
    """One call of a layer: its inputs, and from a pass back on the gradient by its output."""

    inputs: Tensor
    gradient: Tensor | None = None

    @classmethod
    def of(cls, inputs: Tensor, out: Tensor, name: str, done: Callable[[str], None]) -> _Call:
        """done(name) is called when the gradient is there."""
        call = cls(inputs)

        def arrived(gradient: Tensor) -> None:
            call.gradient = gradient
            done(name)

        out.register_hook(arrived)
        return call


def _joined(calls: Sequence[_Call]) -> tuple[Tensor, Tensor]:
    """The tokens of all calls of a layer: inputs [tokens, in] and gradients [tokens, out], float32."""
    inputs = [call.inputs.flatten(0, -2).float() for call in calls]
    outputs = [call.gradient.flatten(0, -2).float() for call in calls if call.gradient is not None]
    return (inputs[0], outputs[0]) if len(calls) == 1 else (torch.cat(inputs), torch.cat(outputs))
