"""The next checkpoint fetched while one is measured, against fetching each in its turn, from a hub that is slow.

The hub is a server on this machine that sends weights at a given rate, as a network does: such that fetching a
checkpoint takes as long as measuring one, where fetching ahead is worth most.  Both runs are of `--prune`, in processes
of their own.  All but the first fetch and the last measuring can overlap: of n checkpoints the ratio is at most
2n / (n + 1), less for starting, fits and report, which both runs have.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

from benchmarks.harness import ROOT, SEED, Outcome, Setup, claim_of, clock
from benchmarks.subjects import PEER, random_llama
from tests.support.hub import LocalHub

CHECKPOINTS, WINDOWS = 4, 4
REPOSITORY = "EleutherAI/pythia-70m"


def measure(setup: Setup) -> Outcome:
    """A run from a fast hub, which says how long measuring takes; then both from the slow one."""
    count, windows = (2, 2) if setup.quick else (CHECKPOINTS, setup.windows or WINDOWS)
    with tempfile.TemporaryDirectory() as name, LocalHub() as hub:
        folder = Path(name)
        size = _publish(hub, folder, count, windows)
        fast = _seconds(hub, folder, "fast", windows, ahead=False)
        hub.rate = size * count / fast
        without = _seconds(hub, folder, "without", windows, ahead=False)
        ahead = _seconds(hub, folder, "ahead", windows, ahead=True)
    claims = [
        claim_of("prefetch: time without / with the next checkpoint fetched ahead", [without / ahead]),
        claim_of("prefetch: the most that this can be", [2 * count / (count + 1)]),
        claim_of("prefetch: time of the slow hub, fetching ahead / of a fast hub", [ahead / fast]),
    ]
    seconds = {"fast hub": fast, "slow hub": without, "slow hub, fetched ahead": ahead}
    details = {"checkpoints": count, "windows": windows, "bytes": size, "bytes a second": hub.rate, "seconds": seconds}
    return Outcome(claims=claims, details=details)


def _publish(hub: LocalHub, folder: Path, count: int, windows: int) -> int:
    """Revisions of one model with other weights in each; the bytes of the weights of one."""
    import torch
    from safetensors.torch import load_file, save_file

    checkpoint, _, _ = random_llama(folder, windows)
    home = Path(checkpoint.location)
    weights, generator = load_file(home / "model.safetensors"), torch.Generator().manual_seed(SEED)
    for number in range(count):
        moved = {n: w + 0.01 * torch.randn(w.shape, generator=generator) for n, w in weights.items()}
        save_file(moved, home / "model.safetensors", {"format": "pt"})
        hub.add(REPOSITORY, f"step{1000 * 2**number}", home)
    return (home / "model.safetensors").stat().st_size


def _seconds(hub: LocalHub, folder: Path, name: str, windows: int, *, ahead: bool) -> float:
    """Wall seconds of one run with an empty cache."""
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / f"cache-{name}"), "HF_HUB_OFFLINE": "0",
    }  # fmt: skip
    words = [str(folder), name, str(windows), str(int(ahead))]
    command = [sys.executable, "-m", "benchmarks.prefetch", *words]
    return clock(lambda: subprocess.run(command, check=True, cwd=ROOT, env=environment)).wall


def _run(folder: Path, name: str, windows: int, ahead: bool) -> None:
    """A run in this process, fetching ahead or not."""
    import ptq_eval
    from ptq_eval.jobs.prefetch import Prefetch

    begin = Prefetch.begin if ahead else lambda self, near: None
    with mock.patch.object(Prefetch, "begin", begin):
        ptq_eval.run(
            f"hub:{REPOSITORY}@step*", folder / name, prune=True, quantizers=("rtn",), bits=(2, 3, 4, 8),
            group_size=64, eval_text=f"{folder}/evaluation.npy#any", calib_text=(f"{folder}/calibration.npy#any",),
            eval_windows=windows, calib_windows=windows, seq_len=PEER["max_position_embeddings"], device="cpu",
            bootstrap=10, write_report=False,
        )  # fmt: skip


if __name__ == "__main__":
    _run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), bool(int(sys.argv[4])))
