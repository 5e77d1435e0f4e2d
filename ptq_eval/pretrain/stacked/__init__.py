"""Many training runs of one shape at once, along a leading axis of K runs.

`llama` is the model, `precision` what is rounded in its forward pass, `optimizers` and `averages` what becomes of the
weights, `trainer` the loop over one stack.  `plan` makes the runs and stacks of a study, `study` trains them.
"""
