"""Forecasts of one run from its own checkpoints: the loss after quantization at more tokens, and D_crit.

A law fitted over a short range describes what was measured and may still fail a few multiples of D later: deltas that
grow like a power of D at first grow ever more slowly.  So no single law is believed here.  Several simple curves
(`candidates`) continue the checkpoints seen so far.  Each is weighted by how well it would have forecast the later of
these checkpoints from the earlier ones, and the error of the weighted forecast on them is the error that a forecast is
given, growing with its distance in log D (`rolling`).  `forecast` draws losses from that, and D_crit as the place of
the minimum of each draw.  `backtest` asks for a whole run what would have been stated earlier, and what happened.
"""
