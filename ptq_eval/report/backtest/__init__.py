"""What a backtest found: its record, its page and a fan chart of every run."""
