#!/usr/bin/env bash
# The source distribution, and the wheel that is built from it alone, with the sources out of the way: install the wheel,
# then use it as a user would.
set -euo pipefail
python=$(realpath -s "${PYTHON:-python3}")
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m build --no-isolation --outdir "$work/dist" "$root" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
# The dependencies are those of the environment that builds; only the package itself comes from the wheel.
"$python" -m pip install --quiet --no-deps --no-index --target "$work/site" "$work"/dist/*.whl
cp -r "$root/examples/trajectory" "$work/trajectory"
cd "$work"
cat >"$work/try.py" <<'PY'
import sys
import ptq_eval, quantizers
from quantizers.testing import check_quantizer
from quantizers import available_quantizers, get_quantizer

site = sys.argv[1]
for module in (ptq_eval, quantizers):
    assert module.__file__.startswith(site), (module.__file__, site)
assert all(get_quantizer(name) for name in available_quantizers())
check_quantizer(lambda: get_quantizer("gptq"))
run = sorted(__import__("pathlib").Path("trajectory").glob("*/checkpoint-*"))[0]
table = ptq_eval.run(run, "out", bits=(4,), group_size=16, eval_windows=8, calib_windows=4, bootstrap=20).table
assert (table["status"] == "ok").all() and len(table) == 4, table
print("wheel: ok", ptq_eval.__version__)
PY
PYTHONPATH="$work/site" "$python" "$work/try.py" "$work/site"
