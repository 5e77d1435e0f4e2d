"""The results of a run as data for others: Parquet, SQLite, lm-eval's results, a card for the Hugging Face hub."""
