"""Qronos and GPTAQ on the activations themselves, in numpy and float64, with the papers' steps and letters."""

import numpy as np

from tests.reference.rtn import group_grid, nearest


def damped(X, X_q, damping):
    """X and X_q [in, tokens] with damping as further tokens that both models see, so that H and G are damped alike."""
    n, columns = X.shape[1], len(X)
    extra = np.sqrt(damping * np.mean(np.sum(X_q**2, axis=1))) * np.eye(columns)
    assert n > 0
    return np.concatenate([X, extra], 1), np.concatenate([X_q, extra], 1)


def qronos(weight, full, quantized, bits, group_size, damping=0.01):
    """The weight of Qronos: full and quantized are the inputs [tokens, in].  Every step is a least-squares problem."""
    X, X_q = damped(full.T.astype(np.float64), quantized.T.astype(np.float64), damping)
    restored = np.empty_like(weight)
    for row, w in enumerate(weight.astype(np.float64)):
        target, v = w @ X, w.copy()
        q = np.zeros_like(w)
        for t in range(len(w)):
            # q_t: the best value of column t, all earlier columns rounded and all later ones as they are
            rest = target - q[:t] @ X_q[:t] - v[t + 1 :] @ X_q[t + 1 :]
            best = rest @ X_q[t] / (X_q[t] @ X_q[t])
            if t % group_size == 0:
                seen = np.append(best, v[t + 1 : t + group_size])
                if t == 0:
                    optimum = np.linalg.lstsq(X_q.T, target, rcond=None)[0]
                    seen = np.append(best, optimum[1:group_size])
                grid = group_grid(np.float32(seen)[None], bits, False)
            q[t] = nearest(np.float32([best]), *grid, bits)[1][0]
            # the later columns: least squares, given what is rounded
            if t + 1 < len(w):
                v[t + 1 :] = np.linalg.lstsq(X_q[t + 1 :].T, target - q[: t + 1] @ X_q[: t + 1], rcond=None)[0]
        restored[row] = q
    return restored


def gptaq(weight, full, quantized, bits, group_size, damping=0.01, alpha=0.25):
    """The weight of GPTAQ: each column's rounding error and mismatch are taken over by the columns after it.

    With R = X − X_q, what the columns after j can take over of w_j·R_j is its least-squares projection on them.
    """
    X, X_q = damped(full.T.astype(np.float64), quantized.T.astype(np.float64), damping)
    W, columns = weight.astype(np.float64), len(X)
    restored = np.empty_like(W)
    for j in range(columns):
        if j % group_size == 0:
            grid = group_grid(np.float32(W[:, j : j + group_size]), bits, False)
        w = W[:, j].copy()
        restored[:, j] = nearest(np.float32(w), *grid, bits)[1]
        if j + 1 < columns:
            later = X_q[j + 1 :].T
            missing = np.outer(X_q[j], w - restored[:, j]) + alpha * np.outer(X[j] - X_q[j], w)
            W[:, j + 1 :] += np.linalg.lstsq(later, missing, rcond=None)[0].T
    return restored
