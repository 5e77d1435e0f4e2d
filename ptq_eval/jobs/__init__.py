"""What can be done, one file each: run, watch, submit, compare laws, fit anybody's table, export a model, study
sensitivities and the mixed precision that follows from them.

Each is a chain of calls to the folders below.
"""
