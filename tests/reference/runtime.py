"""Decoders written out, with quantize–dequantize in the places where inputs, keys and values are read.

Independent of transformers' model code and of `quantizers`: the equations of each architecture with the tensors of a
state dict, and rounding by its definition.  The package does the same by hooks on a loaded model.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F


def integers(x, bits, dims):
    """x on the grid of 2^bits whole numbers from least to largest value (with 0) along `dims`."""
    low, high = x.amin(dims, keepdim=True).clamp(max=0), x.amax(dims, keepdim=True).clamp(min=0)
    return on_grid(x, bits, low, high)


def on_grid(x, bits, low, high):
    """x on the grid between `low` and `high`; zeros stay zeros."""
    scale = (high - low) / (2**bits - 1)
    scale = torch.where(scale == 0, 1.0, scale)
    zero = torch.round(-low / scale)
    return (torch.clamp(torch.round(x / scale) + zero, 0, 2**bits - 1) - zero) * scale


def e4m3(x, dims):
    """x in torch's own 8-bit floats, the largest magnitude along `dims` at 448."""
    scale = x.abs().amax(dims, keepdim=True) / 448
    return (x / scale).to(torch.float8_e4m3fn).float() * scale


INPUT_DIMS = {"token": (2,), "channel": (1,), "tensor": (1, 2)}
"""Of inputs [windows, tokens, channels], what shares a scale."""
CACHE_DIMS = {"token": (3,), "channel": (2,), "tensor": (1, 2, 3)}
"""Of keys and values [windows, heads, tokens, channels]."""


def same(x):
    """x itself."""
    return x


@dataclass
class Rounders:
    """What is done to inputs, to keys before and after their rotation, and to values."""

    inputs: Any = same
    early_keys: Any = same
    keys: Any = same
    values: Any = same


class Reader:
    """A state dict, read by name below a prefix; `linear` rounds its input."""

    def __init__(self, tensors, rounders, prefix=""):
        self.tensors, self.r, self.prefix = tensors, rounders, prefix

    def at(self, name):
        return Reader(self.tensors, self.r, f"{self.prefix}{name}.")

    def __getitem__(self, name):
        return self.tensors[self.prefix + name]

    def linear(self, name, x):
        bias = self.tensors.get(f"{self.prefix}{name}.bias")
        return F.linear(self.r.inputs(x), self[f"{name}.weight"], bias)

    def conv(self, name, x):
        """GPT-2's Conv1D, whose weight is [in, out]."""
        weight, flat = self[f"{name}.weight"], self.r.inputs(x)
        out = torch.addmm(self[f"{name}.bias"], flat.reshape(-1, flat.shape[-1]), weight)
        return out.reshape(*x.shape[:-1], -1)

    def layer_norm(self, name, x, eps=1e-5):
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"], eps)

    def rms_norm(self, name, x, eps=1e-6):
        return self[f"{name}.weight"] * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def heads(x, count):
    """[windows, tokens, channels] as [windows, heads, tokens, channels of a head]."""
    return x.view(*x.shape[:2], count, -1).transpose(1, 2)


def merged(x):
    """The inverse of `heads`."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


def attend(q, k, v, r, mask=None):
    """Causal attention over rounded keys and values."""
    k, v = r.keys(k), r.values(v)
    repeats = q.shape[1] // k.shape[1]
    k, v = (part.repeat_interleave(repeats, dim=1) for part in (k, v))
    return merged(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None))


def angles(time, width, theta):
    """Cosines and sines [time, width] of the rotary embedding, each half the same."""
    inverse = 1.0 / theta ** (torch.arange(0, width, 2).float() / width)
    turn = torch.arange(time).float()[:, None] * inverse
    turn = torch.cat([turn, turn], -1)
    return turn.cos(), turn.sin()


def rotated(x, cos, sin):
    """The first channels of x rotated, pairs half the width apart."""
    width = cos.shape[-1]
    x, rest = x[..., :width], x[..., width:]
    a, b = x.chunk(2, -1)
    return torch.cat([x * cos + torch.cat([-b, a], -1) * sin, rest], -1)


def llama(tensors, ids, config, r):
    """Llama, and Qwen3, which norms each head's queries and keys."""
    m = Reader(tensors, r, "model.")
    x = m["embed_tokens.weight"][ids]
    head = tensors.get("model.layers.0.self_attn.q_norm.weight")
    width = config.hidden_size // config.num_attention_heads if head is None else len(head)
    cos, sin = angles(ids.shape[1], width, config.rope_parameters["rope_theta"])
    for i in range(config.num_hidden_layers):
        layer, attn, mlp = m.at(f"layers.{i}"), m.at(f"layers.{i}.self_attn"), m.at(f"layers.{i}.mlp")
        h = layer.rms_norm("input_layernorm", x, config.rms_norm_eps)
        q = heads(attn.linear("q_proj", h), config.num_attention_heads)
        k = heads(attn.linear("k_proj", h), config.num_key_value_heads)
        v = heads(attn.linear("v_proj", h), config.num_key_value_heads)
        if head is not None:
            q, k = (attn.rms_norm(f"{n}_norm", part, config.rms_norm_eps) for n, part in (("q", q), ("k", k)))
        k = rotated(r.early_keys(k), cos, sin)
        x = x + attn.linear("o_proj", attend(rotated(q, cos, sin), k, v, r))
        h = layer.rms_norm("post_attention_layernorm", x, config.rms_norm_eps)
        x = x + mlp.linear("down_proj", F.silu(mlp.linear("gate_proj", h)) * mlp.linear("up_proj", h))
    x = m.rms_norm("norm", x, config.rms_norm_eps)
    return x @ tensors.get("lm_head.weight", m["embed_tokens.weight"]).T


def gpt2(tensors, ids, config, r):
    """GPT-2: learned positions, one projection for queries, keys and values."""
    m = Reader(tensors, r, "transformer.")
    x = m["wte.weight"][ids] + m["wpe.weight"][: ids.shape[1]]
    for i in range(config.n_layer):
        layer = m.at(f"h.{i}")
        parts = layer.conv("attn.c_attn", layer.layer_norm("ln_1", x)).chunk(3, -1)
        q, k, v = (heads(part, config.n_head) for part in parts)
        x = x + layer.conv("attn.c_proj", attend(q, k, v, r))
        h = layer.conv("mlp.c_fc", layer.layer_norm("ln_2", x))
        x = x + layer.conv("mlp.c_proj", F.gelu(h, approximate="tanh"))
    return m.layer_norm("ln_f", x) @ m["wte.weight"].T


def gpt_neox(tensors, ids, config, r):
    """GPT-NeoX: a part of each head is rotated, attention and MLP side by side."""
    m = Reader(tensors, r, "gpt_neox.")
    x = m["embed_in.weight"][ids]
    width = config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    cos, sin = angles(ids.shape[1], int(width * rope.get("partial_rotary_factor", 1.0)), rope["rope_theta"])
    for i in range(config.num_hidden_layers):
        layer = m.at(f"layers.{i}")
        qkv = layer.linear("attention.query_key_value", layer.layer_norm("input_layernorm", x))
        q, k, v = heads(qkv, config.num_attention_heads).chunk(3, -1)
        a = layer.linear("attention.dense", attend(rotated(q, cos, sin), rotated(k, cos, sin), v, r))
        h = layer.linear("mlp.dense_h_to_4h", layer.layer_norm("post_attention_layernorm", x))
        x = layer.linear("mlp.dense_4h_to_h", F.gelu(h)) + a + x
    return m.layer_norm("final_layer_norm", x) @ tensors["lm_head.weight"].T


def nanochat(tensors, ids, config, r):
    """nanochat with residual weights, value embeddings, smear, backout and sliding windows."""
    m = Reader(tensors, r)
    norm = lambda x: F.rms_norm(x, x.shape[-1:])
    x = norm(m["transformer.wte.weight"][ids])
    gate = tensors["smear_lambda"] * torch.sigmoid(x[:, 1:, :24] @ tensors["smear_gate.weight"].T)
    x = torch.cat([x[:, :1], x[:, 1:] + gate * x[:, :-1]], 1)
    first, time = x, ids.shape[1]
    cos, sin = angles(time, config.n_embd // config.n_head, config.rope_theta)
    back = torch.arange(time)[:, None] - torch.arange(time)
    for i in range(config.n_layer):
        layer = m.at(f"transformer.h.{i}")
        x = m["resid_lambdas"][i] * x + m["x0_lambdas"][i] * first
        h = norm(x)
        q, k, v = (layer.linear(f"attn.c_{n}", h) for n in "qkv")
        if f"value_embeds.{i}.weight" in tensors:
            weight = layer["attn.ve_gate.weight"]
            gate = config.gate_range * torch.sigmoid(h[..., : weight.shape[1]] @ weight.T)
            embedded = heads(tensors[f"value_embeds.{i}.weight"][ids], config.n_kv_head)
            v = merged(heads(v, config.n_kv_head) + gate.transpose(1, 2).unsqueeze(-1) * embedded)
        q, k, v = heads(q, config.n_head), heads(k, config.n_kv_head), heads(v, config.n_kv_head)
        q, k = (norm(rotated(part, cos, -sin)) * config.qk_scale for part in (q, r.early_keys(k)))
        window = config.window(i)
        mask = (back >= 0) & (back <= window) if 0 < window < time else None
        x = x + layer.linear("attn.c_proj", attend(q, k, v, r, mask))
        x = x + layer.linear("mlp.c_proj", F.relu(layer.linear("mlp.c_fc", norm(x))).square())
        if i == config.n_layer // 2:
            middle = x
    x = x - tensors["backout_lambda"] * middle
    logits = (norm(x) @ tensors["lm_head.weight"].T)[..., : config.vocab_size]
    return config.softcap * torch.tanh(logits / config.softcap)


def gemma3(tensors, ids, config, r):
    """Gemma 3: norms before and after each part with weights about 1, two rotary embeddings, layers with a window."""
    m = Reader({n: own + 1 if n.endswith("norm.weight") else own for n, own in tensors.items()}, r, "model.")
    x, time = m["embed_tokens.weight"][ids] * config.hidden_size**0.5, ids.shape[1]
    back = torch.arange(time)[:, None] - torch.arange(time)
    norm = lambda where, name, x: where.rms_norm(name, x, config.rms_norm_eps)
    for i, kind in enumerate(config.layer_types):
        layer, attn, mlp = m.at(f"layers.{i}"), m.at(f"layers.{i}.self_attn"), m.at(f"layers.{i}.mlp")
        cos, sin = angles(time, config.head_dim, config.rope_parameters[kind]["rope_theta"])
        h = norm(layer, "input_layernorm", x)
        q = norm(attn, "q_norm", heads(attn.linear("q_proj", h), config.num_attention_heads))
        k = norm(attn, "k_norm", heads(attn.linear("k_proj", h), config.num_key_value_heads))
        v = heads(attn.linear("v_proj", h), config.num_key_value_heads)
        q = rotated(q, cos, sin) * (config.head_dim / config.query_pre_attn_scalar) ** 0.5
        seen = (back >= 0) & (back < config.sliding_window) if kind == "sliding_attention" else back >= 0
        h = attn.linear("o_proj", attend(q, rotated(r.early_keys(k), cos, sin), v, r, seen))
        x = x + norm(layer, "post_attention_layernorm", h)
        h = norm(layer, "pre_feedforward_layernorm", x)
        gate = F.gelu(mlp.linear("gate_proj", h), approximate="tanh")
        x = x + norm(layer, "post_feedforward_layernorm", mlp.linear("down_proj", gate * mlp.linear("up_proj", h)))
    return norm(m, "norm", x) @ m["embed_tokens.weight"].T


NAIVE = {"gemma3": gemma3, "llama": llama, "qwen3": llama, "gpt2": gpt2, "gpt-neox": gpt_neox, "nanochat": nanochat}
