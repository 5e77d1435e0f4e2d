"""Quantizers of other packages, measured like our own.

`quantizer` puts a backend's method in the place of a quantizer, `handover` hands the model to a worker of
`ptq_eval.backends` and checks the weights that come back, `conformance` tries a backend on a tiny model.
"""
