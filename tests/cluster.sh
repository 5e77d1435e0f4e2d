#!/usr/bin/env bash
# The tests on a real SLURM, which they start on loopback.  Where none can be had, one line says that they did not run; a
# test that fails makes this fail.  PYTHON is the environment's.
set -euo pipefail
cd "$(dirname "$0")/.."

has_slurm() { command -v munged && command -v slurmctld && command -v slurmd && command -v sbatch; } > /dev/null
if [ "$(id -u)" != 0 ]; then
    echo "cluster-test: the tests on SLURM did not run: only root can start its daemons here"
    exit 0
fi
if ! has_slurm && command -v apt-get > /dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update && apt-get install -y --no-install-recommends slurmctld slurmd munge slurm-client; } > /dev/null 2>&1 || true
fi
if ! has_slurm; then
    echo "cluster-test: the tests on SLURM did not run: it is not installed, and apt-get could not install it"
    exit 0
fi
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -q -m cluster tests/jobs
