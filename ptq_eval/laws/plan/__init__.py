"""Planning a training run that is served at P bits: critical tokens, optimal sizes, intervals."""
