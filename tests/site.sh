#!/usr/bin/env bash
# The documentation as a site, where a warning is an error; then the commands and code of the pages that a reader follows from
# top to bottom, run as they stand there: those of the tutorial, and the part SLOW of the others.
set -euo pipefail
cd "$(dirname "$0")/.."
"$PYTHON" -c "import zensical" 2> /dev/null ||
    "$PYTHON" -m pip install --quiet --no-compile --constraint requirements/constraints.txt zensical
"$PYTHON" docs/build_site.py
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -q -m session --slow "$SLOW" tests/docs
