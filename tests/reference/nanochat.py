"""nanochat's model written out position by position, in numpy and float64, from the equations of its source.

The package computes the same with matrices over whole texts (`ptq_eval/models/nanochat.py`).
"""

import numpy as np

EPSILON = np.finfo(np.float32).eps


def norm(x):
    """x over its root mean square, along the last axis."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON)


def sigmoid(x):
    """The logistic function."""
    return 1 / (1 + np.exp(-x))


def turned(vector, position, theta):
    """One head's vector rotated by minus the angle of its position."""
    half = len(vector) // 2
    out = vector.copy()
    for i in range(half):
        angle = position / theta ** (2 * i / len(vector))
        a, b = vector[i], vector[i + half]
        out[i], out[i + half] = a * np.cos(angle) + b * np.sin(angle), b * np.cos(angle) - a * np.sin(angle)
    return out


def logits(tensors, ids, *, heads, kv_heads, pattern, short, theta, qk_scale, gate_range, softcap, vocab):  # noqa: C901
    """Logits [time, vocab] of one text; `tensors` are a state dict of float64 arrays."""
    get, count = tensors.get, len([name for name in tensors if name.endswith("mlp.c_fc.weight")])
    stream = [norm(tensors["transformer.wte.weight"][token]) for token in ids]
    if "smear_gate.weight" in tensors:
        plain = list(stream)
        for t in range(1, len(ids)):
            gate = sigmoid(tensors["smear_gate.weight"][0] @ plain[t][:24])
            stream[t] = plain[t] + tensors["smear_lambda"][0] * gate * plain[t - 1]
    first, middle = [x.copy() for x in stream], None
    for i in range(count):
        at = f"transformer.h.{i}."
        if "resid_lambdas" in tensors:
            stream = [tensors["resid_lambdas"][i] * x + tensors["x0_lambdas"][i] * x0 for x, x0 in zip(stream, first)]
        keys, values, out = [], [], []
        window = short if pattern[i % len(pattern)] == "S" and i < count - 1 and short else len(ids)
        for t, (x, token) in enumerate(zip(stream, ids)):
            x = norm(x)
            q = (tensors[at + "attn.c_q.weight"] @ x).reshape(heads, -1)
            k = (tensors[at + "attn.c_k.weight"] @ x).reshape(kv_heads, -1)
            v = (tensors[at + "attn.c_v.weight"] @ x).reshape(kv_heads, -1)
            if (embedded := get(f"value_embeds.{i}.weight")) is not None:
                gates = tensors[at + "attn.ve_gate.weight"]
                gate = gate_range * sigmoid(gates @ x[: gates.shape[1]])
                v = v + gate[:, None] * embedded[token].reshape(v.shape)
            keys.append([norm(turned(head, t, theta)) * qk_scale for head in k])
            values.append(v)
            seen = range(max(0, t - window), t + 1)
            mixed = []
            for head in range(heads):
                own = head * kv_heads // heads
                query = norm(turned(q[head], t, theta)) * qk_scale
                scores = np.array([query @ keys[s][own] for s in seen]) / np.sqrt(len(query))
                shares = np.exp(scores - scores.max())
                mixed.append(sum(share * values[s][own] for share, s in zip(shares / shares.sum(), seen)))
            out.append(tensors[at + "attn.c_proj.weight"] @ np.concatenate(mixed))
        stream = [x + y for x, y in zip(stream, out)]
        for t, x in enumerate(stream):
            hidden = np.maximum(tensors[at + "mlp.c_fc.weight"] @ norm(x), 0) ** 2
            stream[t] = x + tensors[at + "mlp.c_proj.weight"] @ hidden
        if i == count // 2:
            middle = list(stream)
    if "backout_lambda" in tensors:
        stream = [x - tensors["backout_lambda"][0] * m for x, m in zip(stream, middle)]
    raw = np.array([tensors["lm_head.weight"] @ norm(x) for x in stream])[:, :vocab]
    return softcap * np.tanh(raw / softcap)
