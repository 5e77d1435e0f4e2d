"""From a table of anybody's measurements to the points and columns that laws are fitted to."""
