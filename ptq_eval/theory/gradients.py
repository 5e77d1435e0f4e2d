"""Inputs of every layer and gradients by its outputs, for labels of one's choice.

Hooks keep each layer's input and output of one forward pass; a gradient by the outputs then gives that by the weights
as Σ g xᵀ, without any parameter asking for one.  The graph starts at the embedding's output, since no parameter
requires gradients.  Nothing is kept from one pass to the next.  Not done: gradient checkpointing; a pass over one
window holds its activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ptq_eval.models.language_model import LanguageModel

Gradients = dict[str, tuple[Tensor, Tensor]]
"""{layer: (inputs [tokens, in], gradients of the summed loss by its outputs [tokens, out])}, float32."""


def gradients(
    model: LanguageModel, ids: Tensor, labels: Callable[[Tensor], Tensor], draws: int = 1
) -> Iterator[Gradients]:
    """Gradients of the loss summed over tokens of `ids` [batch, time], once for each draw of labels.

    `labels(logits [batch, time − 1, vocabulary])` gives [batch, time − 1].  A layer that no token reaches is left out;
    one that is called twice has the tokens of both calls.
    """
    calls: list[tuple[str, Tensor, Tensor]] = []

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _module, args, out: calls.append((name, args[0].detach(), out))

    handles = [module.register_forward_hook(keep(name)) for name, module in model.linears().items()]
    embedding: Any = model.module.get_input_embeddings()  # type: ignore[operator]
    handles.append(embedding.register_forward_hook(lambda _module, _args, out: out.requires_grad_(True)))
    try:
        with torch.enable_grad():
            logits = model.module(input_ids=ids, use_cache=False).logits[:, :-1].float()
            log_probability = logits.log_softmax(-1)
    finally:
        for handle in handles:
            handle.remove()
    outputs = [out for _, _, out in calls]
    for draw in range(draws):
        wanted = labels(logits.detach())[..., None]
        with torch.enable_grad():
            loss = -log_probability.gather(-1, wanted).sum()
            by_output = torch.autograd.grad(loss, outputs, retain_graph=draw + 1 < draws, allow_unused=True)
        yield _by_layer(calls, by_output)


def _by_layer(calls: Sequence[tuple[str, Tensor, Tensor]], by_output: Sequence[Tensor | None]) -> Gradients:
    found: Gradients = {}
    for (name, inputs, _), gradient in zip(calls, by_output):
        if gradient is None:
            continue
        pair = inputs.flatten(0, -2).float(), gradient.flatten(0, -2).float()
        before = found.get(name)
        found[name] = pair if before is None else (torch.cat([before[0], pair[0]]), torch.cat([before[1], pair[1]]))
    return found
