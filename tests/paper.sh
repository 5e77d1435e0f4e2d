#!/usr/bin/env bash
# The papers of `ptq-eval paper`, compiled with pdfTeX.  Where it cannot be had, one line says that these tests did not run; a
# test that fails makes this fail.  PYTHON is the environment's.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/apt.sh

packages=$("$PYTHON" -c "from ptq_eval.jobs.paper import PACKAGES; print(PACKAGES)")
found() { command -v latexmk > /dev/null && command -v pdflatex > /dev/null && kpsewhich booktabs.sty lmodern.sty > /dev/null; }
# shellcheck disable=SC2086
found || apt_install $packages
if ! found; then
    echo "paper-test: the tests with LaTeX did not run: apt-get could not install $packages"
    exit 0
fi
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -q -m latex tests/report/paper
