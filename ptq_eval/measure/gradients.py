"""Gradients of the loss by the quantizable weights, which need no parameter to require gradients.

Hooks keep each layer's input x and output of one forward pass; with g the gradient of the loss by that output, the
gradient by the weight is Σ g xᵀ over tokens.  The graph starts at the embedding's output.  A pass keeps its
activations, so windows pass a few at a time; where they would take much memory all the same, each block computes its
own again during the pass back (`recomputation`).  A layer's input can be dropped as soon as its gradient is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ptq_eval.measure.kept import Sums
from ptq_eval.measure.memory import return_freed_memory
from ptq_eval.measure.recomputation import Run, recomputing
from ptq_eval.models.language_model import LanguageModel

_MOST_ACTIVATIONS = {"cpu": 2**28, "cuda": 2**34}
"""Bytes of activations that a pass keeps; blocks that have more compute them again."""

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
    calls = _Calls(take)
    starts: list[Tensor] = []

    def begin(_module: nn.Module, _args: Any, out: Tensor) -> None:
        starts.append(out.requires_grad_(True))

    embedding: Any = model.module.get_input_embeddings()  # type: ignore[operator]
    table: Tensor = embedding.weight
    handles = [embedding.register_forward_hook(begin), *calls.hooks(model)]
    table.requires_grad_(by_table is not None)
    many = _activations(model, ids) > _MOST_ACTIVATIONS.get(model.device.type, _MOST_ACTIVATIONS["cpu"])
    try:
        with torch.enable_grad(), recomputing(model.module, calls.enter) if many else nullcontext():
            logits = model.module(input_ids=ids, use_cache=False).logits
        table.requires_grad_(False)
        yield from _backward(calls, logits, starts if by_table is None else [table], labels, draws, by_table)
    finally:
        for handle in handles:
            handle.remove()
        table.requires_grad_(False)
        if many:
            return_freed_memory()


def _backward(
    calls: _Calls,
    logits: Tensor,
    by: Sequence[Tensor],
    labels: Callable[[Tensor], Tensor],
    draws: int,
    by_table: Tensor | None,
) -> Iterator[Gradients]:
    """The passes back of `gradients`, `by` tensors that the graph starts at."""
    probability = logits.detach().float().softmax(-1)
    for draw in range(draws):
        last = draw + 1 == draws
        wanted = labels(probability[:, :-1])[..., None]
        by_logits = probability if last else probability.clone()  # softmax minus one at the label
        by_logits[:, :-1].scatter_add_(-1, wanted, torch.full_like(wanted, -1.0, dtype=torch.float32))
        by_logits[:, -1] = 0.0  # the last position predicts nothing that is in the window
        if by_table is not None:
            by[0].requires_grad_(True)
        grad = torch.autograd.grad
        found = grad(logits, by, by_logits.to(logits.dtype), retain_graph=not last, allow_unused=True)
        if by_table is not None:
            by[0].requires_grad_(False)
            by_table += found[0]
        yield calls.joined()


def drawn(probability: Tensor, generator: torch.Generator) -> Tensor:
    """One label for each position, [batch, time], by the `probability` [batch, time, vocabulary]."""
    cumulated = probability.cumsum(-1)
    total = cumulated[..., -1:]
    place = total * torch.rand(total.shape, generator=generator, device=total.device)
    return torch.searchsorted(cumulated, place, right=True).squeeze(-1).clamp_(max=probability.shape[-1] - 1)


@dataclass
class _Call:
    """One call of a layer: its inputs, and from a pass back on the gradient by its output."""

    inputs: Tensor | None = None
    gradient: Tensor | None = None


class _Calls:
    """The calls of all layers in one pass.  Within a block that is computed again, inputs are those of that time."""

    def __init__(self, take: Callable[[str, Tensor, Tensor], None] | None) -> None:
        self._take = take
        self._calls: dict[str, list[_Call]] = {}
        # Weak, as a run refers to `enter`: a cycle would keep what `take` fills until garbage is collected.
        self._of_runs = WeakKeyDictionary[Run, dict[str, list[_Call]]]()
        self._waiting: dict[str, list[_Call]] | None = None
        self._first: dict[str, list[_Call]] | None = None

    def hooks(self, model: LanguageModel) -> Iterator[RemovableHandle]:
        """Hooks on all layers, before and after they are called."""
        for name, module in model.linears().items():
            yield module.register_forward_pre_hook(partial(self._called, name))
            yield module.register_forward_hook(partial(self._gave, name))

    def enter(self, run: Run | None, again: bool) -> None:
        """A run of a block begins, or ends (see `recomputing`)."""
        self._first = self._waiting = None
        if run is not None and again:
            self._waiting = {name: list(calls) for name, calls in self._of_runs[run].items()}
        elif run is not None:
            self._first = self._of_runs[run] = {}

    def joined(self) -> Gradients:
        """The inputs and gradients that arrived in a pass back; the next one starts without gradients."""
        reached = {name: [call for call in own if call.gradient is not None] for name, own in self._calls.items()}
        found = {name: _joined(own) for name, own in reached.items() if own}
        for call in (call for own in reached.values() for call in own):
            call.gradient = None
        return found

    def _called(self, name: str, _module: nn.Module, args: Any) -> None:
        inputs = args[0].detach()
        if self._waiting is not None:
            self._waiting[name].pop(0).inputs = inputs
            self._done(name)
            return
        calls = self._calls.setdefault(name, [])
        if self._first is None:
            calls.append(_Call(inputs))
        else:
            calls.append(_Call())
            self._first.setdefault(name, []).append(calls[-1])

    def _gave(self, name: str, _module: nn.Module, _args: Any, out: Tensor) -> None:
        if self._waiting is not None:
            return
        call = self._calls[name][-1]

        def arrived(gradient: Tensor) -> None:
            call.gradient = gradient
            self._done(name)

        out.register_hook(arrived)

    def _done(self, name: str) -> None:
        """Hand over a layer whose calls all have inputs and gradient."""
        if self._take and all(call.inputs is not None and call.gradient is not None for call in self._calls[name]):
            calls = self._calls.pop(name)
            self._take(name, *_joined(calls))
            for call in calls:  # to which hooks of the graph refer until it is gone
                call.inputs = call.gradient = None


def _joined(calls: Sequence[_Call]) -> tuple[Tensor, Tensor]:
    """The tokens of all calls of a layer: inputs [tokens, in] and gradients [tokens, out], float32."""
    inputs = [call.inputs.flatten(0, -2).float() for call in calls if call.inputs is not None]
    outputs = [call.gradient.flatten(0, -2).float() for call in calls if call.gradient is not None]
    return (inputs[0], outputs[0]) if len(calls) == 1 else (torch.cat(inputs), torch.cat(outputs))


def _activations(model: LanguageModel, ids: Tensor) -> int:
    """Bytes of the inputs and outputs of all layers in a pass over `ids`, of which each would be kept once or so."""
    return 4 * ids.numel() * sum(sum(model.weight(name).shape) for name in model.linears())
