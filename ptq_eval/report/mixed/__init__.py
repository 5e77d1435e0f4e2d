"""The report of plans of mixed precision."""
