#!/usr/bin/env bash
# The tests of report.html in a browser.  Where none can be had, one line says that they did not run; a test that fails
# makes this fail.  PYTHON is the environment's; playwright is installed there and drives Debian's chromium.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/apt.sh

find_chromium() { command -v chromium || command -v chromium-browser || command -v google-chrome || true; }
[ -n "$(find_chromium)" ] || apt_install chromium
CHROMIUM=$(find_chromium)
if [ -z "$CHROMIUM" ]; then
    echo "page-test: the browser tests did not run: there is no chromium here, and apt-get could not install it"
    exit 0
fi
"$PYTHON" -c "import playwright" 2> /dev/null ||
    "$PYTHON" -m pip install --quiet --no-compile --constraint requirements/constraints.txt playwright
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
axe=4.10.3
choice=""
if command -v npm > /dev/null && npm pack --silent --pack-destination "$folder" "axe-core@$axe" > /dev/null 2>&1; then
    tar -xzf "$folder/axe-core-$axe.tgz" -C "$folder" package/axe.min.js
else
    echo "page-test: the tests with axe-core did not run: npm is missing or cannot fetch axe-core@$axe"
    choice="not axe"
fi
CHROMIUM=$CHROMIUM AXE=$folder/package/axe.min.js OMP_NUM_THREADS=1 \
    "$PYTHON" -m pytest -q -m browser tests/report/web -k "$choice"
