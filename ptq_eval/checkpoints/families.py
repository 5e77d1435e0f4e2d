"""Which runs differ only in their seed: they share a `family`.

The spread between such runs shows how much δ varies with the seed alone (`results.seeds`).  Names alone prove
nothing: `run1` and `run2` may differ in their learning rate.  A family is taken from what a run says of itself:

pretrain.json      the options of `ptq-eval pretrain` without the seed, and the digest of the text;
public suites      the name without its seed, where a suite publishes several (`Suite.seeds`);
trajectory.yaml    `family: NAME`, which the user gives (`overrides`).

A Hugging Face Trainer keeps its seed in a pickle, which is never opened.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

from ptq_eval.checkpoints import suites
from ptq_eval.models.json_files import load_json
from ptq_eval.records import Checkpoint

_FILE = "pretrain.json"
_PARTS = ("trunk", "annealed")
"""Folders of one training that hold its checkpoints; each has checkpoints of its own kind."""
_AVERAGE = re.compile(r"ema-[\d.e-]+|lawa-\d+")
"""Folders of averages of its weights."""


def with_family(checkpoint: Checkpoint, home: Path | None) -> Checkpoint:
    """The checkpoint with the family of its run, which is in the folder `home` (None: a remote one)."""
    family = (_of_training(home) if home is not None else "") or _of_suite(checkpoint)
    return replace(checkpoint, family=family) if family else checkpoint


def _of_training(home: Path) -> str:
    part = home.name if home.name in _PARTS or _AVERAGE.fullmatch(home.name) else ""
    path = (home.parent if part else home) / _FILE
    try:
        about = load_json(path)
        options = {name: value for name, value in about["config"].items() if name != "seed"}
        if "seed" not in about["config"]:
            return ""
        said = json.dumps([options, about["text_digest"], part], sort_keys=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _of_suite(checkpoint: Checkpoint) -> str:
    found = (suites.find(part, checkpoint.revision) for part in checkpoint.run.split("/"))
    seeds = next((suite.seeds for suite in found if suite is not None), "")
    family, count = re.subn(seeds, "seed", checkpoint.run, flags=re.IGNORECASE) if seeds else ("", 0)
    return family if count else ""
