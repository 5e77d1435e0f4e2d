"""The steps of a run one by one, for tests that look between them."""

from __future__ import annotations

from ptq_eval.checkpoints import discover, verify_all
from ptq_eval.config import RunConfig
from ptq_eval.plan import make_plan
from ptq_eval.sweep import sweep


def planned(folder, **options):
    """The plan of a run on `folder`."""
    return make_plan(verify_all(discover([folder])), RunConfig(**options))


def measured(folder, **options):
    """The first workload of `folder`, and all its measurements."""
    work = planned(folder, **options).workloads[0]
    return work, list(sweep(work, work.trials, tick=lambda amount: None))
