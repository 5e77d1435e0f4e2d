"""Adapters on a base of five million parameters, from a text to tables: `make study-adapt`, or

    python results/adapt/study.py WORK [OUT]

Makes the two texts, trains the base below WORK, and adapts it to the first text in OUT, by default `llama-5m` of this
folder.  What was interrupted goes on when repeated.

The texts are the help topics of the running Python, `pydoc_data.topics`: prose about the language, where the base has
seen code.  The hash of its name puts a topic into one of the two; no part of `stdlib:` has any.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

HERE = Path(__file__).resolve().parent
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
BASE = (
    "--architecture", "llama", "--width", "256", "--layers", "7", "--vocab", "2048", "--context", "128",
    "--batch-size", "4", "--schedule", "wsd", "--decay", "0.3", "--learning-rate", "0.0015", "--warmup", "40",
    "--ratios", "0.5", "--seed", "0", "--text", "stdlib:train", "--threads", "1", "--no-compile",
)  # fmt: skip
ADAPT = (
    "--bits", "16,8,4,3,2", "--seeds", "0,1", "--quantizers", "rtn,bitsandbytes:int8,bitsandbytes:nf4", "--rank", "16",
    "--epochs", "2", "--train-windows", "64", "--batch-size", "4", "--noise-batches", "6", "--eval-windows", "32",
    "--calib-windows", "16", "--group-size", "64", "--device", "cpu",
)  # fmt: skip


def write_texts(work: Path) -> tuple[Path, Path]:
    """The topics to adapt to and those to evaluate on, each in a file below `work`."""
    chosen: dict[str, list[str]] = {"adaptation.txt": [], "evaluation.txt": []}
    for name in sorted(topics):
        held_out = hashlib.sha256(name.encode()).digest()[0] % 4 == 0
        chosen["evaluation.txt" if held_out else "adaptation.txt"].append(topics[name])
    for name, own in chosen.items():
        (work / name).write_text("\n\n".join(own), encoding="utf-8")
    return work / "adaptation.txt", work / "evaluation.txt"


def call(*arguments: str | Path) -> None:
    """`ptq-eval` with these arguments, on one thread."""
    command = [sys.executable, "-m", "ptq_eval", *map(str, arguments)]
    subprocess.run(command, check=True, env={**os.environ, **ONE_THREAD})


def main(work: Path, out: Path = HERE / "llama-5m") -> None:
    """All of it."""
    work.mkdir(parents=True, exist_ok=True)
    adaptation, evaluation = write_texts(work)
    call("pretrain", work / "base", *BASE)
    (base,) = (work / "base" / "annealed").iterdir()
    texts = ("--train-text", adaptation, "--eval-text", evaluation, "--calib-text", adaptation)
    call("adapt", base, "-o", out, *ADAPT, *texts)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
