"""The report of a run.

A figure is a module with `data` (a table of everything drawn) and `draw`; `report.write` names those that are drawn.
"""
