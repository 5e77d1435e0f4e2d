"""The report of laws fitted to a user's table."""
