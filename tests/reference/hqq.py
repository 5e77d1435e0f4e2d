"""HQQ as its authors describe it, one group after another, in numpy and float64.

Badri & Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models"; the letters are theirs.
"""

import numpy as np


def shrink(x, beta, p):
    """The generalised soft-thresholding of one number."""
    return 0.0 if x == 0 else np.sign(x) * max(0.0, abs(x) - abs(x) ** (p - 1) / beta)


def hqq(weight, bits, group_size=None, *, p=0.7, beta=10.0, kappa=1.01, steps=20):
    """The weight [out, in] that HQQ stores on an asymmetric grid."""
    columns = weight.shape[1]
    size, top = group_size or columns, 2**bits - 1
    groups = [row[start : start + size].astype(np.float64) for row in weight for start in range(0, columns, size)]
    s = [(w.max() - w.min()) / top for w in groups]
    z = [-w.min() / scale for w, scale in zip(groups, s)]
    best = np.inf
    for _ in range(steps):
        total = 0.0
        for index, w in enumerate(groups):
            W_q = np.clip(np.rint(w / s[index] + z[index]), 0, top)
            W_r = (W_q - z[index]) * s[index]
            W_e = np.array([shrink(x, beta, p) for x in w - W_r])
            z[index] = np.mean(W_q - (w - W_e) / s[index])
            total += np.abs(w - W_r).sum()
        beta *= kappa
        if total >= best:
            break
        best = total
    restored = [(np.clip(np.rint(w / a + b), 0, top) - b) * a for w, a, b in zip(groups, s, z)]
    per_row = -(-columns // size)
    return np.stack([np.concatenate(restored[i : i + per_row]) for i in range(0, len(restored), per_row)])
