"""The steps of a run one by one, for tests that look between them."""

from __future__ import annotations

from pathlib import Path

from ptq_eval.checkpoints import discover, verify_all
from ptq_eval.config.run import RunConfig
from ptq_eval.measure.sweep import sweep
from ptq_eval.measure.trials import make_plan

PER_CHECKPOINT = 1 + 2 * 2
"""Records of a checkpoint under the options of the fixture `small`."""


def planned(folder, **options):
    """The plan of a run on `folder`."""
    return make_plan(verify_all(discover([folder])), RunConfig(**options))


def measured(folder, **options):
    """The first workload of `folder`, and all its measurements."""
    work = planned(folder, **options).workloads[0]
    return work, list(sweep(work, work.trials, tick=lambda amount: None))


def lines(out):
    """Complete lines in all record files."""
    return sum(path.read_bytes().count(b"\n") for path in Path(out).glob("records/*.jsonl"))
