"""`ptq-eval run` on 135 M parameters, everything included, against the loop over the fastest package of each method.

The model and the options are those of `real_size`, the loop that of `peers.loop`, whose cells are measured at 4 bits
alone: they stand in for 2, 3 and 8 bits, because the time of a cell depends on shapes.  Ours and the loop are measured
one after the other on the same windows.  Both evaluate full precision and twelve models, so the ratio cannot exceed the
loop's seconds over those of thirteen bare evaluations, which is stated beside it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import Outcome, Setup, claim_of, clock
from benchmarks.peers import loop as peers
from benchmarks.real_size import BITS, GROUP, QUANTIZERS, QUICK_SHAPE, SHAPE
from benchmarks.subjects import random_llama

WINDOWS = 8
QUICK = {**QUICK_SHAPE, "hidden_size": 192, "num_attention_heads": 3, "num_key_value_heads": 1}
"""Every package wants columns that groups divide."""
RATIO = 3.0


def measure(setup: Setup) -> Outcome:
    """Ours, then the loop."""
    shape = {**SHAPE, **(QUICK if setup.quick else {})}
    shape["num_hidden_layers"] = setup.layers or shape["num_hidden_layers"]
    windows = setup.windows or (2 if setup.quick else WINDOWS)
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint, _, _ = random_llama(folder, windows, **shape)
        give_tokenizer(Path(checkpoint.location))
        options = {
            "eval_text": f"{folder}/evaluation.npy#any", "calib_text": f"{folder}/calibration.npy#any",
            "eval_windows": windows, "calib_windows": windows, "seq_len": shape["max_position_embeddings"],
            "group_size": GROUP,
        }  # fmt: skip
        words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        words += ["--quantizers", ",".join(QUANTIZERS), "--bits", ",".join(map(str, BITS)), "--device", "cpu"]
        command = [sys.executable, "-m", "ptq_eval", "run", checkpoint.location, "-o", str(folder / "out"), *words]
        ours = clock(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)).wall
        own = {**options, "calib_text": (options["calib_text"],)}
        loop = peers.measured(checkpoint, folder, own, threads, measuring=(4,))
    details = {"shape": shape, "windows": windows, "seconds of ours": ours}
    if loop is None:
        return Outcome(details={**details, "left out": "a package of the loop is missing"})
    theirs = peers.seconds(loop, 1)
    claims = [
        claim_of("135M: everything, the loop as its packages offer it / ours", [theirs["offered"] / ours],
                 limit=RATIO, sense="at least"),
        claim_of("135M: everything, the granted loop / ours", [theirs["granted"] / ours]),
        claim_of("135M: the loop as its packages offer it / bare evaluations",
                 [theirs["offered"] / theirs["evaluations"]]),
        claim_of("135M: ours / bare evaluations", [ours / theirs["evaluations"]]),
    ]  # fmt: skip
    return Outcome(claims=claims, details={**details, "seconds of the loop": theirs, "loop": loop})


def give_tokenizer(folder: Path) -> None:
    """A tokenizer beside the model, which some packages cannot load a model without; no text is read with it."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)
