#!/usr/bin/env bash
# The package on another Python, with the newest dependencies that pyproject.toml allows: the Python of a Debian release
# (SUITE) in a folder of its own, a real run, and the tests of what calls other packages most (TESTS).  Where that cannot be
# had, one line says that nothing ran.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/apt.sh
command -v debootstrap > /dev/null || apt_install debootstrap
if [ "$(id -u)" != 0 ] || ! command -v debootstrap > /dev/null; then
    echo "newest-test: nothing ran: it needs root and Debian's debootstrap"
    exit 0
fi
root=$(mktemp -d)
trap 'umount "$root/proc" 2> /dev/null || true; rm -rf --one-file-system "$root"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates,git "${SUITE:-trixie}" "$root" > /dev/null
cp /etc/resolv.conf "$root/etc/"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
mount -t proc proc "$root/proc"
mkdir "$root/source"
git ls-files -z | xargs -0 cp --parents -t "$root/source"
cat > "$root/try.sh" <<'SH'
set -euo pipefail
cd /source
export OMP_NUM_THREADS=1
python3 -m venv /venv
/venv/bin/python -m pip install --quiet uv
/venv/bin/uv pip install --quiet --python /venv/bin/python --editable ".[test]"
/venv/bin/python -c "import sys, torch, transformers; print(sys.version.split()[0], torch.__version__, transformers.__version__)"
/venv/bin/ptq-eval run examples/trajectory/llama-40k -o /out --group-size 16 --eval-windows 24 --calib-windows 8 --bootstrap 20 2> /said
test -s /out/report.html
if grep -i "deprecat\|FutureWarning" /said; then exit 1; fi
git init -q && git add -A
/venv/bin/python -m pytest -q -n "${JOBS:-2}" $TESTS
SH
TESTS=${TESTS:-tests/quantizers tests/models tests/corpora tests/results tests/report/run tests/report/common tests/config} \
    chroot "$root" bash /try.sh
