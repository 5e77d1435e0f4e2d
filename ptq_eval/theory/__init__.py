"""What the theory of quantization noise predicts for a model, beside what is measured.

`curvature` turns the noise of rounding into a loss, `sensitivity` measures and predicts the damage of each layer,
`bound` fits the constant in δ ≤ C·4^−bits, and `summary` compares prediction and measurement.  `jobs.sensitivity` is
the job that runs them on checkpoints.  Importing this package imports no torch.
"""

ALL = "all"
"""In place of a layer's name: every layer quantized together."""

FULL_BYTES = 2
"""Bytes of a weight that is not quantized."""

REMAINDER = "interaction"
"""In place of a part's name: what all parts together cost beyond the sum of each alone."""
