"""What the package promises in numbers, measured: correct codes, correct delta, time of a demo and of a sweep.

    python -m benchmarks                      every benchmark, results in results/benchmarks/
    python -m benchmarks --only sweep         one of them
    python -m benchmarks --only sweep --quick a rehearsal on small sizes; its numbers are not results
    python -m benchmarks --check              exit code 1 where a limit is missed
    python -m pytest benchmarks/test_pieces.py      single functions, with all that pytest-benchmark says

Each benchmark is a module with a function `measure(setup) -> Outcome`.  An outcome holds claims (a number, what was
measured around it, the limit it is held to) and details.  A claim about speed is a ratio of two things timed by turns
in one process (or in fresh processes by turns), the median of the paired ratios with their smallest and largest; a
number of seconds says more about the machine than about the program, so where a claim is one, the machine is named.

Other quantization packages (`methods`, `grid`, lm-eval in `throughput`) live in environments of their own, which
`peers` makes below .bench-envs/; one that cannot be built is skipped with a line.  What needs a GPU is in `gpu`, a
script of its own.  docs/benchmarks.md says what each benchmark does.
"""
