"""What all reports share: numbers, tables, figure style, files, and the data of a run as reports read it."""
