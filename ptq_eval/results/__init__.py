"""The output folder of a run: the records, the description of the run, which records count, and the table."""
