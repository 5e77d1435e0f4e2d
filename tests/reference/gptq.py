"""GPTQ as the paper prints it: Algorithm 1 of arXiv 2210.17323 in numpy, float64, with the paper's letters.

The package gets the same codes with other algebra (`quantizers/gptq/`).  Only the rounding itself is in float32; `rtn`
says why.
"""

import numpy as np

from tests.reference.rtn import group_grid, nearest


def algorithm_1(W, H, bits, grid, B=128):
    """Codes and Q [rows, columns] of W with the damped H, in blocks of B columns.

    `grid(j, W)` gives scale and zero of column j, with W as it was before the block of j.
    """
    W, columns = W.copy(), len(H)
    codes, Q, E = np.zeros_like(W), np.zeros_like(W), np.zeros((len(W), B))
    U = np.linalg.cholesky(np.linalg.inv(H)).T  # H⁻¹ ← Cholesky(H⁻¹)ᵀ
    for i in range(0, columns, B):
        end, before = min(i + B, columns), W.copy()
        for j in range(i, end):
            codes[:, j], Q[:, j] = nearest(np.float32(W[:, j]), *grid(j, before), bits)  # quant(W_:,j)
            E[:, j - i] = (W[:, j] - Q[:, j]) / U[j, j]
            W[:, j:end] -= np.outer(E[:, j - i], U[j, j:end])
        W[:, end:] -= E[:, : end - i] @ U[i:end, end:]
    return codes, Q


def gptq(
    weight,
    hessian,
    bits,
    group_size=None,
    symmetric=False,
    *,
    damping=0.01,
    block_size=128,
    act_order=False,
    static_groups=False,
    dead="zero",
):
    """Codes [out, in] and the weight that they represent, columns in their original order.

    With `block_size=1` a group's scale is that of the weights as they are when its first column is reached.
    """
    W, H = weight.astype(np.float64), hessian.astype(np.float64)
    columns, size, unused = len(H), group_size or len(H), np.diag(H) == 0
    damp = damping * np.diag(H)[~unused].mean()
    H[unused, unused] = 1
    if dead == "zero":
        W[:, unused] = 0
    order = np.argsort(-np.diag(H), kind="stable") if act_order else np.arange(columns)
    grids = {}

    def grid(j, before):
        group, source = (order[j] // size, W) if static_groups else (j // size, before)
        if group not in grids:
            grids[group] = group_grid(np.float32(source[:, group * size : (group + 1) * size]), bits, symmetric)
        return grids[group]

    damped = H[np.ix_(order, order)] + damp * np.eye(columns)
    codes, restored = np.empty(W.shape, np.uint8), np.empty(W.shape, np.float32)
    codes[:, order], restored[:, order] = algorithm_1(W[:, order], damped, bits, grid, block_size)
    return codes, restored


def hessian_of(inputs):
    """H = 2/n Σ xxᵀ of `inputs` [n, in] in float64."""
    x = inputs.astype(np.float64)
    return 2 / len(x) * x.T @ x
