#!/usr/bin/env bash
# The notebook in examples/, executed on a folder measured here.  PYTHON is the environment's; polars, DuckDB and a kernel are
# installed there.
set -euo pipefail
cd "$(dirname "$0")/.."
"$PYTHON" -c "import duckdb, ipykernel, nbclient, polars" 2> /dev/null ||
    "$PYTHON" -m pip install --quiet --no-compile --constraint requirements/constraints.txt duckdb ipykernel nbclient polars
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -q -m notebook tests/report/dataset
