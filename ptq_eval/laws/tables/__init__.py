"""From rows, ours or anybody's, to the columns that a fit reads."""
