"""Inner loops of scoring: many rows of logits reduced to log-sum-exp, divergence and top-1 agreement (`sums`).

`plain` in torch and `cpu` compiled by numba have the same two functions, `full_precision` and `variant`; `scoring`
chooses between them.
"""
