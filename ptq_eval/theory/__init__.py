"""What the theory of quantization noise says of a model, beside what is measured.

    from ptq_eval.theory.job import sensitivity

    record, problems = sensitivity("my-run/", "out/", bits=(2, 3, 4), steps="first,last")

`noise` is the model of the rounding error, `curvature` what turns a weight's error into loss, `bound` the constant in
δ ≤ C·4^−bits, `sensitivity` the damage of each layer measured and predicted, and `job` the way from a folder of
checkpoints to a record of all that.  Importing this package imports no torch.
"""
