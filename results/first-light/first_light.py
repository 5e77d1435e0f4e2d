"""First light: a small family trained on English books, constant and annealed, swept and fitted.

    python results/first-light/first_light.py TRAIN_TEXT VALID_TEXT WORK [--device cpu|cuda] [--stage train|measure|all]

TRAIN_TEXT and VALID_TEXT are plain text (.txt, or .txt.bz2 / .txt.gz), books that share nothing.  The last two million
characters of TRAIN_TEXT are never trained on and serve calibration; evaluation is the start of VALID_TEXT.  WORK takes
the weights, which are not part of this repository; tables, fits and figures are written beside this file.

Each size is trained once with a constant rate (`trunk`), and each D/N again has a branch of its own that leaves the
trunk at 0.8 D and falls linearly to zero (`annealed`).  An interrupted training or sweep goes on when repeated.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import os
import time
from pathlib import Path

import torch

import ptq_eval
from ptq_eval.pretrain import PretrainConfig, pretrain

HERE = Path(__file__).resolve().parent
CALIBRATION_CHARS = 2_000_000
TRAIN_CHARS = {"cpu": 60_000_000, "cuda": None}
FAMILY = {
    "cpu": {
        32: (10, 16, 28, 50, 90, 160, 300, 500, 700, 1000),
        48: (10, 16, 28, 50, 90, 160, 240, 320, 400),
    },
    "cuda": {64: (10, 30, 100, 300, 1000), 96: (10, 30, 100, 300, 1000), 128: (10, 30, 100, 300, 1000)},
}


def read(path: Path) -> str:
    """The text of a plain or compressed file."""
    opener = {".bz2": bz2.open, ".gz": gzip.open}.get(path.suffix, open)
    with opener(path, "rt", encoding="utf-8") as handle:
        return handle.read()


def train(text: str, work: Path, device: str, only: int | None) -> None:
    """Train every size of the family on `text`, or the one of width `only`, one after another."""
    for width, ratios in FAMILY[device].items():
        if only not in (None, width):
            continue
        config = PretrainConfig(width=width, batch_size=16, warmup=40, ratios=ratios, schedule="wsd")
        started = time.time()
        pretrain(config, text, work / f"llama-{width}", device=device, compiled=True)
        print(f"width {width}: {time.time() - started:.0f} s", flush=True)


def measure(work: Path, device: str) -> None:
    """Sweep the constant and the annealed checkpoints of all sizes, each into a folder beside this file."""
    os.chdir(work)  # so that the records name texts and checkpoints as a reader elsewhere would
    for kind, folder in (("constant", "trunk"), ("annealed", "annealed")):
        # One folder per run, named after its size, so that runs carry the names of their models.
        family = Path(kind)
        family.mkdir(exist_ok=True)
        for width in FAMILY[device]:
            link = family / f"llama-{width}"
            if not link.exists():
                link.symlink_to(work / f"llama-{width}" / folder, target_is_directory=True)
        result = ptq_eval.run(
            family,
            HERE / kind,
            bits=(2, 3, 4, 8),
            group_size=16,
            eval_text="evaluation.txt",
            calib_text="calibration.txt",
            eval_windows=512,
            calib_windows=128,
            device=device,
            bootstrap=1000,
        )
        print(kind, len(result.table), "rows", flush=True)


def main() -> None:
    """Parse arguments, prepare texts, train, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train_text", type=Path)
    parser.add_argument("valid_text", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--device", default="cpu", choices=sorted(FAMILY))
    parser.add_argument("--stage", default="all", choices=("train", "measure", "all"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--width", type=int, help="train this size only, for one process per size")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    text = read(arguments.train_text)
    (work / "calibration.txt").write_text(text[-CALIBRATION_CHARS:], encoding="utf-8")
    (work / "evaluation.txt").write_text(read(arguments.valid_text), encoding="utf-8")
    if arguments.stage != "measure":
        train(text[:-CALIBRATION_CHARS][: TRAIN_CHARS[arguments.device]], work, arguments.device, arguments.width)
    if arguments.stage != "train":
        measure(work, arguments.device)


if __name__ == "__main__":
    main()
