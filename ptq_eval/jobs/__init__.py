"""What can be done beside a run, one file each: compare laws, fit anybody's table, export a model, study sensitivities
and the mixed precision that follows from them.

Each is a chain of calls to the folders below; `ptq_eval.api` holds the main one.
"""
