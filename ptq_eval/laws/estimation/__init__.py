"""From columns to constants: the search, its uncertainty, and what is said about the minimum."""
