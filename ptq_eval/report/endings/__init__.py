"""The pages of `average` and of `probe`: ways to end a run, compared at equal D."""
