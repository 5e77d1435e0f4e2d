"""A paper in LaTeX from an output folder: numbers as macros, tables, figures, and prose that uses them."""
