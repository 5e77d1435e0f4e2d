"""What it is worth to measure errors on the output of a whole attention or MLP block: AWQ and SignRound at 2 bits.

    python results/quantizers/block_outputs.py [--bits 2] [--method awq|signround]

Two packages' methods are better than ours at 2 bits: llm-compressor's AWQ and auto-round's SignRound.  Both measure the
error after the whole block; ours is the sum of the errors of the layers' own outputs, which statistics hold.  Here both
errors are minimised on the same model (the last checkpoint of the embedded `llama-160k`), grid (asymmetric, groups of
32) and windows (512 to evaluate, three draws of 64 to calibrate), by plain code that knows the model's structure:

- AWQ: the exponents of the search are the same, and what is compared is the output of the attention or the MLP.  The
  package's option `relative` is beside it.
- SignRound: offsets and ranges of the seven matrices of a decoder block move together, by the signs of gradients of
  that block's output error on batches of 8 windows; a block sees the inputs that the quantized ones before it leave,
  and is compared with the full-precision one on full-precision inputs.

Printed are δ and its difference to ours, with a standard error of windows and draws.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from beside_packages import EMBEDDED, GROUP
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from ptq_eval import corpora
from ptq_eval.corpora.windows import make_windows
from ptq_eval.models.loading import load_tokenizer
from quantizers import LayerStats, Scheme, get_quantizer
from quantizers.awq import channel_scales

CHECKPOINT = max(EMBEDDED.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
DRAWS, LENGTH, STEPS, BATCH = 3, 128, 200, 8
PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
         "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
Call = tuple[tuple[Any, ...], dict[str, Any]]


def model() -> Any:
    """The checkpoint in float32."""
    return AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32, attn_implementation="eager").eval()


def windows(text: str, count: int, seed: int) -> Tensor:
    """Windows [count, LENGTH] spread over a text."""
    tokenizer = load_tokenizer(CHECKPOINT, False, CHECKPOINT.name)
    cut = make_windows(
        corpora.read(text), tokenizer, seq_len=LENGTH, count=count, selection="spread", seed=seed, vocab_size=1024
    )
    return torch.tensor(cut.ids, dtype=torch.long)


def losses(module: Any, ids: Tensor) -> np.ndarray:
    """Loss per token of every window."""
    found = []
    for batch in ids.split(64):
        logits = module(batch).logits[:, :-1].flatten(0, 1)
        each = functional.cross_entropy(logits, batch[:, 1:].flatten(), reduction="none")
        found.append(each.view(len(batch), -1).mean(1))
    return torch.cat(found).numpy()


def calls_of(module: Any, ids: Tensor, watched: Sequence[nn.Module]) -> dict[nn.Module, Call]:
    """The arguments with which each of the watched modules is called for `ids`, as one batch."""
    found: dict[nn.Module, Call] = {}

    def keep(one: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        found[one] = arguments, named

    hooks = [one.register_forward_pre_hook(keep, with_kwargs=True) for one in watched]
    module.model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def input_of(call: Call) -> Tensor:
    """The hidden states of a call."""
    return call[0][0] if call[0] else call[1]["hidden_states"]


def output_of(module: nn.Module, call: Call) -> Tensor:
    """The hidden states that come of a call."""
    result = module(*call[0], **call[1])
    return result[0] if isinstance(result, tuple) else result


def awq(module: Any, ids: Tensor, scheme: Scheme, error: str) -> None:
    """Quantize all layers by AWQ, the search comparing `error`: "sum", "relative" or "block"."""
    groups: list[tuple[Any, list[Any]]] = []
    for block in module.model.layers:
        attention, mlp = block.self_attn, block.mlp
        groups += [
            (attention, [attention.q_proj, attention.k_proj, attention.v_proj]),
            (mlp, [mlp.gate_proj, mlp.up_proj]),
        ]
        groups += [(layer, [layer]) for layer in (attention.o_proj, mlp.down_proj)]
    calls, new = calls_of(module, ids, [parent for parent, _ in groups]), []
    for parent, layers in groups:
        stats = LayerStats.from_inputs(input_of(calls[parent]))
        if error == "block":
            new.append(searched(parent, layers, calls[parent], stats, scheme))
            continue
        quantizer = get_quantizer("awq", relative=error == "relative")
        results = quantizer.quantize_group([layer.weight for layer in layers], scheme, stats)
        new.append([result.dequantize() for result in results])
    for (_, layers), weights in zip(groups, new):
        for layer, weight in zip(layers, weights):
            layer.weight.copy_(weight)


def searched(parent: nn.Module, layers: list[Any], call: Call, stats: LayerStats, scheme: Scheme) -> list[Tensor]:
    """The weights with the least error of the output of `parent`."""
    rounding, own = get_quantizer("rtn"), [layer.weight.clone() for layer in layers]
    before, least, best = output_of(parent, call), float("inf"), own
    for scales in channel_scales(stats.mean_abs, torch.arange(20) / 20):
        tried = [rounding.quantize(weight * scales, scheme).dequantize() / scales for weight in own]
        for layer, weight in zip(layers, tried):
            layer.weight.copy_(weight)
        error = float((output_of(parent, call) - before).square().mean())
        if error < least:
            least, best = error, tried
    for layer, weight in zip(layers, own):
        layer.weight.copy_(weight)
    return best


class Learned(nn.Module):
    """A linear layer whose rounding offsets and ranges are learned."""

    def __init__(self, layer: Any, bits: int) -> None:
        super().__init__()
        self.top, self.groups = 2**bits - 1, layer.weight.detach().view(len(layer.weight), -1, GROUP)
        self.low, self.high = self.groups.amin(-1).clamp(max=0), self.groups.amax(-1).clamp(min=0)
        start = torch.zeros_like(self.groups), torch.ones_like(self.low), torch.ones_like(self.low)
        self.learned = [one.requires_grad_() for one in start]
        self.limits = (-0.5, 0.5), (0.5, 1.0), (0.5, 1.0)

    def weight(self) -> Tensor:
        """The quantized weight; rounding passes gradients through."""
        offset, lower, upper = self.learned
        scale = ((upper * self.high - lower * self.low) / self.top).clamp(min=1e-9)
        zero = rounded(-lower * self.low / scale).unsqueeze(-1)
        codes = (rounded(self.groups / scale.unsqueeze(-1) + offset) + zero).clamp(0, self.top)
        return ((codes - zero) * scale.unsqueeze(-1)).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        return functional.linear(x, self.weight())

    def step(self, rate: float) -> None:
        """Move against the signs of the gradients."""
        for one, limits in zip(self.learned, self.limits):
            assert one.grad is not None
            one.data.sub_(rate * one.grad.sign()).clamp_(*limits)
            one.grad = None


def rounded(x: Tensor) -> Tensor:
    """To nearest, with the gradient of the identity."""
    return x + (x.round() - x).detach()


def signround(module: Any, ids: Tensor, scheme: Scheme, error: str) -> None:
    """Quantize all layers by SignRound on the error of "layer" outputs (the package's own) or of "block" outputs."""
    if error == "layer":
        layers = [block.get_submodule(name) for block in module.model.layers for name in PARTS]
        for layer, call in calls_of(module, ids, layers).items():
            stats = LayerStats.from_inputs(input_of(call))
            one: Any = layer
            one.weight.copy_(get_quantizer("signround").quantize(one.weight, scheme, stats).dequantize())
        return
    first = module.model.layers[0]
    call = calls_of(module, ids, [first])[first]
    named = {name: of_one(value, len(ids)) for name, value in call[1].items() if name != "hidden_states"}
    plain = changed = input_of(call)
    for block in module.model.layers:
        target = output_of(block, ((plain,), named))
        learn(block, scheme.bits, changed, target, named)
        plain, changed = target, output_of(block, ((changed,), named))


def of_one(value: Any, count: int) -> Any:
    """Masks and positions, which are the same in all `count` windows, of one of them: they fit batches of any size."""
    if isinstance(value, tuple):
        return tuple(of_one(part, count) for part in value)
    return value[:1] if isinstance(value, Tensor) and value.ndim and len(value) == count else value


def learn(block: Any, bits: int, inputs: Tensor, target: Tensor, named: dict[str, Any]) -> None:
    """Replace the seven matrices of a decoder block by learned ones."""
    learned = {name: Learned(block.get_submodule(name), bits) for name in PARTS}
    for name, layer in learned.items():
        block.set_submodule(name, layer)
    generator, least, best = torch.Generator().manual_seed(0), float("inf"), {}
    for step in range(STEPS + 1):
        batch = torch.randperm(len(inputs), generator=generator)[:BATCH]
        with torch.enable_grad():
            loss = (output_of(block, ((inputs[batch],), named)) - target[batch]).square().mean()
        if loss.item() < least:
            least, best = loss.item(), {name: layer.weight().detach() for name, layer in learned.items()}
        loss.backward()
        for layer in learned.values():
            layer.step((1 - step / STEPS) / STEPS)
    for name, weight in best.items():
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight.data = weight
        block.set_submodule(name, layer)


METHODS: dict[str, tuple[Callable[[Any, Tensor, Scheme, str], None], tuple[str, ...]]] = {
    "awq": (awq, ("sum", "relative", "block")),
    "signround": (signround, ("layer", "block")),
}
"""Each with the errors that it may minimise, ours first."""


@torch.no_grad()
def main() -> None:
    """Measure, and print a line for each error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", default="2")
    parser.add_argument("--method", choices=sorted(METHODS))
    arguments = parser.parse_args()
    ids = windows("stdlib:evaluation", 512, 0)
    before = losses(model(), ids)
    for bits in map(int, arguments.bits.split(",")):
        for name, (method, errors) in METHODS.items():
            ours = None
            for error in errors if arguments.method in (None, name) else ():
                found = []
                for seed in range(DRAWS):
                    module = model()
                    method(module, windows("stdlib:calibration", 64, seed), Scheme(bits, GROUP), error)
                    found.append(losses(module, ids) - before)
                delta = np.array(found)
                ours = delta if ours is None else ours
                by_window, by_draw = (delta - ours).mean(0), (delta - ours).mean(1)
                se = np.hypot(by_window.std(ddof=1) / len(ids) ** 0.5, by_draw.std(ddof=1) / DRAWS**0.5)
                print(f"{bits} {name} {error} {delta.mean():.4f} {by_draw.mean():+.4f} {se:.4f}", flush=True)


if __name__ == "__main__":
    main()
