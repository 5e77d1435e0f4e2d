"""Low-rank adaptation (LoRA) of a base whose weights are quantized, and the noise of its gradients.

`lora` attaches an adapter to a base, `noise` defines the variance of a gradient, `training` trains one adapter and
measures it after each epoch.  `jobs.adapt` is the job over bit-widths and seeds, `theory.adaptation` what is predicted.
"""
