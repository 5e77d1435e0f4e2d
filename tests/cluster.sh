#!/usr/bin/env bash
# The tests on a real SLURM and a real Ray, which they start on loopback.  Where none can be had, one line says that they did not run; a
# test that fails makes this fail.  PYTHON is the environment's.
set -euo pipefail
cd "$(dirname "$0")/.."

"$PYTHON" -c "import ray" 2> /dev/null ||
    "$PYTHON" -m pip install --quiet --constraint requirements/constraints.txt "ray>=2.40" || true
tests=()
if "$PYTHON" -c "import ray" 2> /dev/null; then
    tests+=(tests/jobs/test_ray.py)
else
    echo "cluster-test: the tests on Ray did not run: it cannot be installed for this Python"
fi
has_slurm() { command -v munged && command -v slurmctld && command -v slurmd && command -v sbatch; } > /dev/null
if [ "$(id -u)" = 0 ] && ! has_slurm && command -v apt-get > /dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update && apt-get install -y --no-install-recommends slurmctld slurmd munge slurm-client; } > /dev/null 2>&1 || true
fi
if [ "$(id -u)" = 0 ] && has_slurm; then
    tests+=(tests/jobs/test_slurm.py)
else
    echo "cluster-test: the tests on SLURM did not run: it needs root and Debian's slurmctld, slurmd, munge and slurm-client"
fi
[ ${#tests[@]} = 0 ] || OMP_NUM_THREADS=1 "$PYTHON" -m pytest -q -m cluster "${tests[@]}"
