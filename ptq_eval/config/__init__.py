"""What each command can be asked: its options, every one declared once.

`options` is the mechanism: the declaration, the check of a value and its flag.  `run` holds the options of a run and of
its plan, `export` those of an export, `fit` those of a fit to a table, `plan` those of `ptq-eval plan`, `study`
those of a backtest and of the sensitivities.  Importing this package imports neither the laws nor torch.
"""
