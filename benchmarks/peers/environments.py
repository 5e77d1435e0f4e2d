"""One virtual environment per peer, below `.bench-envs/` (ignored by git), built once.

The peers cannot be installed together, and each would bring a torch of its own: every environment gets the torch of
this process, by a constraint, so that a comparison is between programs and not between builds of torch.  An
environment that cannot be built is reported in one line and its comparisons are skipped; it is tried again next time.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import venv
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.harness import ROOT

FOLDER = Path(os.environ.get("PTQ_EVAL_BENCH_ENVS", ROOT / ".bench-envs"))


@dataclass(frozen=True)
class Peer:
    """A package to compare with: what pip installs, and what its processes find in their environment."""

    name: str
    requirements: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()

    @property
    def module(self) -> str:
        """The name of its driver module without `drive_`."""
        return self.name.replace("-", "_")


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "neural-compressor", ("neural-compressor-pt==3.10", "accelerate")
        ),  # its GPTQ imports accelerate without declaring it
        # 7.7.0 needs a later torch; with one worker it raises on a CPU.
        Peer("gptqmodel", ("gptqmodel==7.6.0",), (("GPTQMODEL_CPU_WORKERS", "2"),)),
        Peer("llm-compressor", ("llmcompressor==0.14.0.1",)),
        # requests is imported by modelopt and missing from what it declares.
        Peer("modelopt", ("nvidia-modelopt==0.47.0", "requests")),
        Peer("auto-round", ("auto-round==0.16.1",)),
        Peer(
            "lm-eval",
            (
                "lm-eval==0.4.13",
                "accelerate",
            ),
        ),
    )
}
QUANTIZING = tuple(name for name in PEERS if name != "lm-eval")


def python_of(name: str) -> Path | None:
    """The interpreter of a peer's environment, built if need be; None, after one line on stderr, if that fails."""
    peer = PEERS[name]
    home = FOLDER / name
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    wanted = _fingerprint(peer)
    stamp = home / "built"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    started = time.perf_counter()
    try:
        _build(peer, home, python)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"{name}: left out, its environment cannot be built ({_reason(error)})", file=sys.stderr)
        return None
    stamp.write_text(wanted, encoding="utf-8")
    print(f"{name}: environment built in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return python


def _build(peer: Peer, home: Path, python: Path) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    constraints = FOLDER / "constraints.txt"
    constraints.write_text(_constraint(), encoding="utf-8")
    venv.create(home, with_pip=True, clear=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
    subprocess.run(
        [*command, "torch", "transformers", *peer.requirements],
        check=True,
        capture_output=True,
        text=True,
        timeout=1800,
    )


def _constraint() -> str:
    return f"torch=={version('torch').partition('+')[0]}\n"


def _fingerprint(peer: Peer) -> str:
    text = "\n".join((*peer.requirements, _constraint(), sys.version))
    return hashlib.sha256(text.encode()).hexdigest()


def _reason(error: Exception) -> str:
    said = getattr(error, "stderr", None) or str(error)
    text = said.decode(errors="replace") if isinstance(said, bytes) else said  # bytes where time ran out
    lines = [line for line in text.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "ERROR" in line), lines[-1] if lines else "no message")[:200]
