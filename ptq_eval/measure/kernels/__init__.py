"""Inner loops of scoring: log-sum-exp, divergence and agreement of many rows of logits."""
