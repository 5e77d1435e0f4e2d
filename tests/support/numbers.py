"""What the tests of jobs on several machines share."""

import os
from pathlib import Path

from ptq_eval.results.store import Store

COMPARED = ("nll", "n_tokens", "n_bytes", "kl", "agree", "windows", "status", "tokens")


def numbers(out):
    """{key: what was measured} of all records; every key once."""
    store = Store(out)
    found = {m.trial.key(): tuple(getattr(m, name) for name in COMPARED) for m in store.measurements()}
    lines = sum(len(path.read_text().splitlines()) for path in store.records.glob("*.jsonl"))
    assert lines == len(found)
    return found


def working(out):
    """Numbers of the processes that measure into `out`."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"work" in words and os.fsencode(out) in words:
            found.append(int(place.name))
    return found
