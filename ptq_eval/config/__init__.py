"""What each command can be asked: its options, every one declared once.

`options` is the mechanism: the declaration, the check of a value and its flag.  `run` holds the options of a run and of
its plan; `export`, `fit` and `plan` are named after their commands, `study` serves backtest and sensitivity,
`commands` for commands with one or two options.  Importing this package imports neither the laws nor torch.
"""
