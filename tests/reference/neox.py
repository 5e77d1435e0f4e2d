"""Logits of GPT-NeoX computed from the files of its ranks, as the ranks compute them: each with its own heads and part
of the MLP, their outputs added up.  After megatron/model/transformer.py of EleutherAI/gpt-neox at ea7aefd; slow."""

import torch
from torch.nn import functional as F


def _rotary(x, dims, base=10_000):
    """RoPE of halves on the first `dims` channels of x [time, batch, heads, size]."""
    turned, kept = x[..., :dims], x[..., dims:]
    frequency = 1.0 / base ** (torch.arange(0, dims, 2).float() / dims)
    angle = torch.outer(torch.arange(len(x)).float(), frequency)
    angle = torch.cat([angle, angle], dim=-1)[:, None, None, :]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * angle.cos() + torch.cat([-second, first], dim=-1) * angle.sin()
    return torch.cat([turned, kept], dim=-1)


def _attend(q, k, v):
    """Causal attention of q, k, v [time, batch, heads, size]."""
    scores = torch.einsum("tbhd,sbhd->bhts", q, k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~torch.ones(len(q), len(q)).tril().bool(), float("-inf"))
    return torch.einsum("bhts,sbhd->tbhd", scores.softmax(-1), v).flatten(2)


def neox_logits(layers, options, ids):
    """layers: {index: [state of each rank]} as saved; ids [batch, time] -> logits [batch, time, vocabulary]."""
    ranks, hidden, heads = options["model_parallel_size"], options["hidden_size"], options["num_attention_heads"]
    own, size, eps = heads // ranks, hidden // heads, options.get("layernorm_epsilon", 1e-5)
    dims, parallel = int(size * options["rotary_pct"]), options["gpt_j_residual"]
    act = (lambda y: F.gelu(y, approximate="tanh")) if options.get("bias_gelu_fusion") else F.gelu
    norm = lambda x, state, name: F.layer_norm(x, (hidden,), state[f"{name}.weight"], state[f"{name}.bias"], eps)

    embedding = torch.cat([state["word_embeddings.weight"] for state in layers[0]])
    x = embedding[ids].transpose(0, 1)
    for index in range(2, options["num_layers"] + 2):
        attention, mlp, last = [], [], []
        for state in layers[index]:
            qkv = F.linear(
                norm(x, state, "input_layernorm"),
                state["attention.query_key_value.weight"],
                state["attention.query_key_value.bias"],
            )
            q, k, v = qkv.unflatten(-1, (own, 3 * size)).chunk(3, dim=-1)
            mixed = _attend(_rotary(q, dims), _rotary(k, dims), v)
            attention.append(F.linear(mixed, state["attention.dense.weight"]))
        biases = [state["attention.dense.bias"] for state in layers[index]]
        if not parallel:  # the ranks add up their outputs, and then each adds the bias, which is the same on all
            x = x + sum(attention) + biases[0]
        for state in layers[index]:
            inner = F.linear(
                norm(x, state, "post_attention_layernorm"), state["mlp.linear1.weight"], state["mlp.linear1.bias"]
            )
            mlp.append(F.linear(act(inner), state["mlp.linear2.weight"]))
            last.append(state["mlp.linear2.bias"])
        # In parallel, each rank adds its biases before their outputs add up.
        x = x + (sum(attention) + sum(biases) + sum(mlp) + sum(last) if parallel else sum(mlp) + last[0])
    x = norm(x, layers[options["num_layers"] + 3][0], "norm")
    if options["no_weight_tying"]:
        head = torch.cat([state["final_linear.weight"] for state in layers[options["num_layers"] + 4]])
    else:
        head = embedding
    return F.linear(x, head).transpose(0, 1)
