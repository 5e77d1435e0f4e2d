#!/usr/bin/env bash
# The callback with the loggers themselves.  PYTHON is the environment's; they are installed there.
set -euo pipefail
cd "$(dirname "$0")/.."
"$PYTHON" -c "import mlflow, tensorboard, trackio, wandb" 2> /dev/null ||
    "$PYTHON" -m pip install --quiet --no-compile --constraint requirements/constraints.txt mlflow-skinny tensorboard trackio wandb
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -q -m loggers tests/training
