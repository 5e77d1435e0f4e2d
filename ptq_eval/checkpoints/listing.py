"""The formats of checkpoints that are read or recognised, as `ptq-eval formats` lists them."""

from __future__ import annotations

from ptq_eval import plugins
from ptq_eval.checkpoints import foreign


def listing() -> list[dict[str, str]]:
    """One row per format: its name, how it is recognised, and whether it is read, converted or only recognised."""
    rows = [
        {"checkpoints": name, "looks like": form.looks_like, "status": "converted" if form.converted else "read"}
        for name, form in sorted(plugins.load_all("checkpoints").items())
    ]
    others = ({"checkpoints": name, "looks like": file, "status": "recognised"} for name, file in foreign.kinds())
    return [*rows, *others]
