"""nanochat's model in all its recorded forms, as a model of transformers.

nanochat's code changed the architecture several times and a checkpoint does not say which code wrote it.  So there is
one model here whose configuration names every difference: learned weights of the residual stream, value embeddings with
gates, the smear of the previous token, the subtraction of the middle layer, sliding windows, the base of the rotary
embedding, the sharpness of attention and the cap of the logits.  Which values a checkpoint has is inferred by
`checkpoints.nanochat`.  Parameters have nanochat's own names, so its files load as they are.

With N layers and x_0 = RMSNorm(wte(t)), smeared where there is a gate,

    x ← λ_i·x + μ_i·x_0;   x ← x + attention(RMSNorm(x));   x ← x + W₂·relu(W₁·RMSNorm(x))²     for layer i,
    logits = c·tanh(lm_head(RMSNorm(x − β·x_{N/2}))/c).

Norms have no weights, and their epsilon is that of the number type, as in nanochat: a model trained in bfloat16
(7.8e-3) is another function in float32 (1.2e-7).  Source: github.com/karpathy/nanochat, nanochat/gpt.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ptq_eval.models.configuration import NANOCHAT


def register() -> None:
    """Make the architecture known to transformers' Auto classes; again does no harm."""
    AutoConfig.register(NANOCHAT, NanochatConfig, exist_ok=True)
    AutoModelForCausalLM.register(NanochatConfig, NanochatForCausalLM, exist_ok=True)


class NanochatConfig(PreTrainedConfig):
    """The sizes as nanochat's `model_config` names them, and what its code fixes.

    padded_vocab_size: rows of the embedding and the head; logits beyond vocab_size are dropped.  short_window: tokens
    to the left that a layer marked S in window_pattern attends to, itself besides; the last layer attends to all.
    rope_table: the type that the rotary table is rounded to, "" for none.  gate_channels: inputs of the gate of the
    value embeddings, 0 where there are none; gate_range: its largest value.
    """

    model_type = NANOCHAT
    attribute_map = {  # noqa: RUF012 (as transformers declares it)
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "num_key_value_heads": "n_kv_head",
        "max_position_embeddings": "sequence_len",
    }

    def __init__(
        self,
        vocab_size: int = 32768,
        sequence_len: int = 2048,
        n_layer: int = 12,
        n_head: int = 6,
        n_kv_head: int = 6,
        n_embd: int = 768,
        padded_vocab_size: int | None = None,
        window_pattern: str = "L",
        short_window: int = 0,
        rope_theta: float = 10000.0,
        rope_table: str = "",
        qk_scale: float = 1.0,
        softcap: float = 15.0,
        residual_weights: bool = False,
        gate_channels: int = 0,
        gate_range: float = 2.0,
        smear: bool = False,
        backout: bool = False,
        **others: Any,
    ) -> None:
        self.vocab_size, self.sequence_len = vocab_size, sequence_len
        self.n_layer, self.n_head, self.n_kv_head, self.n_embd = n_layer, n_head, n_kv_head, n_embd
        self.padded_vocab_size = padded_vocab_size or vocab_size
        self.window_pattern, self.short_window = window_pattern, short_window
        self.rope_theta, self.rope_table = rope_theta, rope_table
        self.qk_scale, self.softcap = qk_scale, softcap
        self.residual_weights, self.smear, self.backout = residual_weights, smear, backout
        self.gate_channels, self.gate_range = gate_channels, gate_range
        values: dict[str, Any] = {"tie_word_embeddings": False, **others}
        super().__init__(**values)

    def window(self, layer: int) -> int:
        """Tokens to the left that a layer attends to; 0 for all."""
        short = self.window_pattern[layer % len(self.window_pattern)].upper() == "S"
        return self.short_window if short and layer < self.n_layer - 1 else 0

    def has_value_embedding(self, layer: int) -> bool:
        """Whether values of a layer get an embedding of the token: every other layer, counted from the last."""
        return self.gate_channels > 0 and layer % 2 == (self.n_layer - 1) % 2


SMEAR_CHANNELS = 24
"""Inputs of the gate that mixes in the previous token."""


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],))


class Attention(nn.Module):
    """Causal attention: rotation, then norm of queries and keys; gated value embeddings."""

    is_causal = True

    def __init__(self, config: NanochatConfig, layer: int) -> None:
        super().__init__()
        if config.n_embd % config.n_head or config.n_head % config.n_kv_head:
            raise ValueError(f"{config.n_embd} channels, {config.n_head} heads and {config.n_kv_head} of keys")
        width, head = config.n_embd, config.n_embd // config.n_head
        self.config, self.layer_idx, self.head_dim = config, layer, head
        self.num_key_value_groups = config.n_head // config.n_kv_head
        self.c_q = nn.Linear(width, config.n_head * head, bias=False)
        self.c_k = nn.Linear(width, config.n_kv_head * head, bias=False)
        self.c_v = nn.Linear(width, config.n_kv_head * head, bias=False)
        self.c_proj = nn.Linear(width, width, bias=False)
        gated = config.has_value_embedding(layer)
        self.ve_gate = nn.Linear(config.gate_channels, config.n_kv_head, bias=False) if gated else None

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], embedded: Tensor | None) -> Tensor:
        """x [batch, time, n_embd]; turn: cosines and sines [time, head_dim/2]; embedded: values of the tokens."""
        batch, time, _ = x.shape
        q, k, v = (part(x).view(batch, time, -1, self.head_dim) for part in (self.c_q, self.c_k, self.c_v))
        if self.ve_gate is not None and embedded is not None:
            gate = self.config.gate_range * torch.sigmoid(self.ve_gate(x[..., : self.ve_gate.in_features]))
            v = v + gate.unsqueeze(-1) * embedded.view(v.shape)
        q, k = (_norm(_turned(part, turn)) * self.config.qk_scale for part in (q, k))
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        mask = self._mask(time, x.device)
        y, _ = attend(self, q, k, v, mask, dropout=0.0, scaling=self.head_dim**-0.5, is_causal=mask is None)
        return self.c_proj(y.reshape(batch, time, -1))

    def _mask(self, time: int, device: torch.device) -> Tensor | None:
        """True [1, 1, time, time] where a row may see a column, for a window shorter than the text."""
        window = self.config.window(self.layer_idx)
        if not 0 < window < time:
            return None
        back = torch.arange(time, device=device)[:, None] - torch.arange(time, device=device)
        return ((back >= 0) & (back <= window))[None, None]


def _turned(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """x [batch, time, heads, head_dim] rotated by minus the angle of its position, halves paired."""
    cos, sin = (part[None, :, None] for part in turn)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos + b * sin, b * cos - a * sin], dim=-1).to(x.dtype)


class MLP(nn.Module):
    """Two matrices around relu²."""

    def __init__(self, config: NanochatConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, time, n_embd]."""
        return self.c_proj(F.relu(self.c_fc(x)).square())


class Block(nn.Module):
    """Attention, then MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: NanochatConfig, layer: int) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(config, layer), MLP(config)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], embedded: Tensor | None) -> Tensor:
        """As `Attention.forward`."""
        x = x + self.attn(_norm(x), turn, embedded)
        return x + self.mlp(_norm(x))


class NanochatForCausalLM(PreTrainedModel):
    """The language model; logits are float32, as nanochat computes them."""

    config_class = NanochatConfig
    base_model_prefix = ""
    _supports_sdpa = True
    _no_split_modules = ["Block"]  # noqa: RUF012

    def __init__(self, config: NanochatConfig) -> None:
        super().__init__(config)
        rows, width = config.padded_vocab_size, config.n_embd
        blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(rows, width), "h": blocks})
        self.lm_head = nn.Linear(width, rows, bias=False)
        if config.residual_weights:
            self.resid_lambdas = nn.Parameter(torch.ones(config.n_layer))
            self.x0_lambdas = nn.Parameter(torch.full((config.n_layer,), 0.1))
        if config.gate_channels:
            layers = filter(config.has_value_embedding, range(config.n_layer))
            values = config.n_kv_head * (width // config.n_head)
            self.value_embeds = nn.ModuleDict({str(layer): nn.Embedding(rows, values) for layer in layers})
        if config.smear:
            self.smear_gate = nn.Linear(SMEAR_CHANNELS, 1, bias=False)
            self.smear_lambda = nn.Parameter(torch.full((1,), 0.1))
        if config.backout:
            self.backout_lambda = nn.Parameter(torch.full((1,), 0.2))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of tokens."""
        return self.transformer["wte"]

    def get_output_embeddings(self) -> nn.Module:
        """The output head."""
        return self.lm_head

    def forward(self, input_ids: Tensor, **_: Any) -> CausalLMOutput:
        """Logits [batch, time, vocab_size] of token ids [batch, time]."""
        config, parts = self.config, self.transformer
        blocks: Any = parts["h"]
        x = _norm(parts["wte"](input_ids))
        if config.smear:
            gate = self.smear_lambda * torch.sigmoid(self.smear_gate(x[:, 1:, :SMEAR_CHANNELS]))
            x = torch.cat([x[:, :1], x[:, 1:] + gate * x[:, :-1]], dim=1)
        first, middle, turn = x, None, self._turn(input_ids.shape[1], x)
        for layer, block in enumerate(blocks):
            if config.residual_weights:
                x = self.resid_lambdas[layer] * x + self.x0_lambdas[layer] * first
            embedded = self.value_embeds[str(layer)](input_ids) if config.has_value_embedding(layer) else None
            x = block(x, turn, embedded)
            middle = x if layer == config.n_layer // 2 else middle
        if config.backout and middle is not None:
            x = x - self.backout_lambda * middle
        logits = self.lm_head(_norm(x))[..., : config.vocab_size].float()
        return CausalLMOutput(logits=config.softcap * torch.tanh(logits / config.softcap))

    def _turn(self, time: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [time, head_dim/2] of the angle of each position and pair of channels."""
        head = self.config.n_embd // self.config.n_head
        channels = torch.arange(0, head, 2, dtype=torch.float32, device=x.device)
        positions = torch.arange(time, dtype=torch.float32, device=x.device)
        angle = torch.outer(positions, 1.0 / self.config.rope_theta ** (channels / head))
        table = getattr(torch, self.config.rope_table) if self.config.rope_table else x.dtype
        return angle.cos().to(table), angle.sin().to(table)
