"""Fitting one law to points: losses, solver, intervals, diagnostics; `folder` fits everything that a run measured."""
