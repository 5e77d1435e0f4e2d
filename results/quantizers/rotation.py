"""Block rotation in front of MXFP4 and NVFP4: rotated RTN and GPTQ beside the plain ones.

    python results/quantizers/rotation.py WORK

The last checkpoints of the embedded runs; 512 evaluation windows, three draws of 64 calibration windows.  Rotations are
in blocks of the formats' own (32 and 16 columns).  The table, `rotation.csv` beside this file and printed, has δ of
both and their difference, rotated minus plain, paired by window and by draw; its error covers both.  An interrupted run
goes on when repeated.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from beside_packages import DRAWS, EMBEDDED, differences, sides_of

import ptq_eval

HERE = Path(__file__).resolve().parent
MODELS = ("llama-40k", "llama-160k")
FORMATS = ("mxfp4", "nvfp4")
PLAIN = ("rtn", "gptq")


def measure(work: Path, model: str, form: str) -> Path:
    """Measure both methods, plain and rotated, on one model in one format; the folder of what was measured."""
    folder = work / f"{model}-{form}"
    run = EMBEDDED.parent / model
    ptq_eval.run(
        max(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])),
        folder / "all",
        quantizers=(*PLAIN, *(f"hadamard-{name}" for name in PLAIN)),
        formats=(form,),
        bits=(),
        calib_repeats=DRAWS,
        calib_windows=64,
        eval_windows=512,
        write_report=False,
        bootstrap=10,
    )
    return folder


def rows_of(folder: Path, model: str, form: str) -> list[dict[str, object]]:
    """A row per plain method: its δ, that of the rotated one, and their difference."""
    found, design = sides_of(folder)
    sides = {side.name: side for side in found}
    compared = differences([(sides[f"hadamard-{name}"], sides[name]) for name in PLAIN], design)
    return [
        {
            "model": model,
            "format": form,
            "method": name,
            "delta": sides[name].delta,
            "delta_rotated": sides[f"hadamard-{name}"].delta,
            "noise_floor": sides[name].floor,
            "difference": mean,
            "se": error,
        }
        for name, (mean, error) in zip(PLAIN, compared)
    ]


def main(work: Path) -> None:
    """Measure, write the table, and print it."""
    rows = [row for model in MODELS for form in FORMATS for row in rows_of(measure(work, model, form), model, form)]
    table = pd.DataFrame(rows)
    table.to_csv(HERE / "rotation.csv", index=False, float_format="%.6g")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.4f}"))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
