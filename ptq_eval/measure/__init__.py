"""From checkpoints to measurements.

`trials` lists what to measure, `sweep` takes one checkpoint through all its trials: `calibration` pauses a forward
pass at every layer (`paused_forward`) and fills the `variants`, `evaluate` runs them over the evaluation windows, and
`scoring` reduces logits to losses.  Nothing here writes a file.
"""
