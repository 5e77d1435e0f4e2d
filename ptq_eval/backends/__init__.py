"""Foreign packages as quantizers of the same harness: what people deploy with, measured on the same windows.

    plan → (model and token ids in a folder) → worker in the package's own environment → weights → evaluation

A backend runs in a process of its own (`worker`), with the interpreter of an environment of its own or of this one
(`environments`), under a time and a memory limit (`process`).  What comes back are dense weights and facts, which are
checked and then measured like those of any quantizer.  `measure.foreign` takes their weights back.  The backends are
in `packages/`, one file each, and are found through the entry points `ptq_eval.backends`; so are those of others.

No package is imported here, in any case: not to list it, and not to run it.
"""
