"""K Llama models of one shape as one computation: every parameter has a leading axis of runs.

The mathematics is that of transformers' LlamaForCausalLM as `architectures` configures it (RMSNorm, rotary embedding,
grouped-query attention, SwiGLU, tied head), which the tests compare losses and gradients with.  It is written anew
because K small models cost far less as K batched products than one after another, and torch.func.vmap over the module
is slower than a loop: its attention has no batching rule on the CPU.

All parameters of a run are one row of a matrix [K, P], so that optimizers, clipping and averages are a few operations
on one tensor.  Its columns come in two pieces: what Muon leaves to AdamW (embedding and norms), then the matrices.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ptq_eval.pretrain.stacked.head import tied_head
from ptq_eval.pretrain.stacked.precision import Precision

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_JOINS = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gate_up", "up_proj": "gate_up"}
_JOINED = re.compile("|".join(_JOINS))


@dataclass(frozen=True)
class Layout:
    """Where each parameter lies in a row of P numbers, by transformers' names."""

    config: Any

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter, in the order of the columns."""
        c = self.config
        width, head = c.hidden_size, c.hidden_size // c.num_attention_heads
        small: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (c.vocab_size, width),
            "model.norm.weight": (width,),
        }
        large: dict[str, tuple[int, ...]] = {}
        for layer in range(c.num_hidden_layers):
            name = f"model.layers.{layer}"
            small |= {f"{name}.{norm}.weight": (width,) for norm in ("input_layernorm", "post_attention_layernorm")}
            rows = (width, c.num_key_value_heads * head, c.num_key_value_heads * head, width)
            large |= {f"{name}.self_attn.{part}.weight": (n, width) for part, n in zip(ATTENTION, rows)}
            large |= {f"{name}.mlp.{part}.weight": (c.intermediate_size, width) for part in ("gate_proj", "up_proj")}
            large |= {f"{name}.mlp.down_proj.weight": (width, c.intermediate_size)}
        return small | large

    @cached_property
    def sizes(self) -> list[int]:
        """Columns of every parameter."""
        return [math.prod(shape) for shape in self.shapes.values()]

    @property
    def in_blocks(self) -> dict[str, tuple[int, ...]]:
        """The matrices of the blocks, which are last."""
        return {name: shape for name, shape in self.shapes.items() if name.endswith("_proj.weight")}

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Parameters [K, …] as views of `flat` [K, P]."""
        return _views(flat, self.shapes)

    @cached_property
    def joined(self) -> dict[str, tuple[int, ...]]:
        """`shapes` with one matrix where several read the same input: queries, keys and values; gate and up."""
        found: dict[str, tuple[int, ...]] = {}
        for name, shape in self.shapes.items():
            whole = _JOINED.sub(lambda match: _JOINS[match[0]], name)
            found[whole] = (found[whole][0] + shape[0], *shape[1:]) if whole in found else shape
        return found

    def row(self, state: dict[str, Tensor]) -> Tensor:
        """A model's parameters by name as one row [P], float32."""
        return torch.cat([state[name].detach().float().reshape(-1) for name in self.shapes])

    def named(self, row: Tensor) -> dict[str, Tensor]:
        """The inverse of `row`, with the tied head, on the CPU."""
        found = {name: view[0].clone() for name, view in self.views(row.detach().cpu()[None]).items()}
        return found | {"lm_head.weight": found["model.embed_tokens.weight"]}

    def decays(self, device: str) -> Tensor:
        """Which of the P numbers weight decay applies to, [P]: those of matrices, embedding included."""
        flags = [torch.full((n,), float(len(s) > 1)) for n, s in zip(self.sizes, self.shapes.values())]
        return torch.cat(flags).to(device)


class StackedLlama:
    """The losses of K models.  `config`: a transformers LlamaConfig with a tied head and default rotary embedding."""

    def __init__(self, config: Any, device: str) -> None:
        self.layout, self.config = Layout(config), config
        head = config.hidden_size // config.num_attention_heads
        inverse = config.rope_parameters["rope_theta"] ** (-torch.arange(0, head, 2, dtype=torch.float32) / head)
        angles = torch.arange(config.max_position_embeddings)[:, None] * inverse
        both = torch.cat([angles, angles], -1).to(device)
        self._cos, self._sin = both.cos(), both.sin()

    def losses(self, flat: Tensor, ids: Tensor, precision: Precision) -> Tensor:
        """Mean loss of each run, nats per token, [K], from parameters [K, P] and windows `ids` [K, B, T]."""
        runs, batch, length = ids.shape
        p, width = _views(flat, self.layout.joined), self.config.hidden_size
        embedding = p["model.embed_tokens.weight"]
        first = torch.arange(runs, device=ids.device).view(-1, 1) * len(embedding[0])
        # as one table: gather's gradient adds single numbers, that of an embedding whole rows
        x = F.embedding(ids.view(runs, -1) + first, embedding.flatten(0, 1))
        for layer in range(self.config.num_hidden_layers):
            name = f"model.layers.{layer}"
            own = {key.removeprefix(f"{name}."): value for key, value in p.items() if key.startswith(f"{name}.")}
            x = x + self._attention(self._norm(x, own["input_layernorm.weight"]), own, (batch, length), precision)
            x = x + self._mlp(self._norm(x, own["post_attention_layernorm.weight"]), own, precision)
        x = self._norm(x, p["model.norm.weight"]).view(runs, batch, length, width)
        if not x.is_cuda:
            return tied_head(x, embedding, ids)
        logits = torch.bmm(x.flatten(1, 2), embedding.mT).view(runs, batch, length, -1)[:, :, :-1].float()
        each = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, :, 1:].reshape(-1), reduction="none")
        return each.view(runs, -1).mean(1)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        x = x.float()
        return weight[:, None] * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config.rms_norm_eps))

    def _attention(self, x: Tensor, p: dict[str, Tensor], size: tuple[int, int], precision: Precision) -> Tensor:
        (batch, length), c = size, self.config
        runs, x = len(x), precision.activation(x)
        heads = self._heads()
        rows = [n * (c.hidden_size // c.num_attention_heads) for n in heads]
        found = _linear(x, p["self_attn.qkv.weight"], precision, rows).split(rows, 2)
        q, k, v = (y.view(runs, batch, length, n, -1).transpose(2, 3) for y, n in zip(found, heads))
        q, k, v = self._turned(q), precision.cached(self._turned(k)), precision.cached(v)
        repeats = c.num_attention_heads // c.num_key_value_heads
        q, k, v = (y.flatten(0, 1) for y in (q, k, v))
        k, v = (y.repeat_interleave(repeats, 1) for y in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v.to(q.dtype), is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(runs, batch * length, c.hidden_size)
        return _linear(precision.activation(mixed), p["self_attn.o_proj.weight"], precision)

    def _heads(self) -> tuple[int, int, int]:
        return self.config.num_attention_heads, *[self.config.num_key_value_heads] * 2

    def _turned(self, x: Tensor) -> Tensor:
        """Rotary position embedding of [K, B, heads, T, channels]."""
        low, high = x.chunk(2, -1)
        length = x.shape[-2]
        cos, sin = self._cos[:length].to(x.dtype), self._sin[:length].to(x.dtype)
        return x * cos + torch.cat([-high, low], -1) * sin

    @staticmethod
    def _mlp(x: Tensor, p: dict[str, Tensor], precision: Precision) -> Tensor:
        x, half = precision.activation(x), [p["mlp.down_proj.weight"].shape[2]] * 2
        gate, up = _linear(x, p["mlp.gate_up.weight"], precision, half).chunk(2, 2)
        inner = F.silu(gate) * up
        return _linear(precision.activation(inner), p["mlp.down_proj.weight"], precision)


def _views(flat: Tensor, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    pieces = flat.split([math.prod(shape) for shape in shapes.values()], dim=1)
    return {name: piece.view(len(flat), *shape) for (name, shape), piece in zip(shapes.items(), pieces)}


def _linear(x: Tensor, weight: Tensor, precision: Precision, rows: Sequence[int] = ()) -> Tensor:
    """The product with a matrix, or with several that are joined and have so many rows each."""
    return torch.bmm(x, precision.weight(weight, rows).mT)
