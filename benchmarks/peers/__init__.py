"""Other quantization packages, each in an environment of its own, run by a small program that talks JSON.

`environments` makes the environments, `driver` is the program that runs inside one, and each `drive_…` module says how
that one package loads a model and quantizes it.  `kept` saves, reloads and evaluates what was quantized.  `jobs` is
this side of it, and `loop` what a whole grid takes that way.  `drive_ours` does the same with this package, so that
both sides of a comparison are started, timed and weighed by the same code.

What a driver runs is the call that the package's own documentation shows, with the settings of the comparison and
nothing tuned; where a package needs more than that to run on a CPU, its module says what.
"""
