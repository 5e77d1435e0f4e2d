"""ptq-eval: what post-training quantization costs along a pretraining run, and where more data harms.

    import ptq_eval

    result = ptq_eval.run("my-run/", "out/", bits=(2, 3, 4), group_size=64)
    result.table[["tokens_per_param", "quantizer", "bits", "delta", "delta_se"]]
    result.fit["critical_tokens"]

Importing this package imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ptq_eval.version import __version__

__all__ = [
    "RunResult",
    "__version__",
    "arena",
    "average",
    "compare",
    "compare_laws",
    "dataset",
    "estimate",
    "export",
    "fit_by",
    "fit_data",
    "load",
    "paper",
    "probe",
    "run",
    "save_report",
    "sensitivity",
]
_JOBS = {
    "arena": "jobs.arena",
    "average": "jobs.average",
    "compare": "jobs.compare",
    "compare_laws": "jobs.compare_laws",
    "dataset": "jobs.dataset",
    "fit_by": "jobs.compare_laws",
    "fit_data": "jobs.fit_table",
    "export": "jobs.export",
    "paper": "jobs.paper",
    "probe": "jobs.probe",
    "sensitivity": "jobs.sensitivity",
}

if TYPE_CHECKING:
    from ptq_eval.jobs.arena import arena
    from ptq_eval.jobs.average import average
    from ptq_eval.jobs.compare import compare
    from ptq_eval.jobs.compare_laws import compare_laws, fit_by
    from ptq_eval.jobs.dataset import dataset
    from ptq_eval.jobs.export import export
    from ptq_eval.jobs.fit_table import fit_data
    from ptq_eval.jobs.paper import paper
    from ptq_eval.jobs.probe import probe
    from ptq_eval.jobs.run import RunResult, estimate, load, run, save_report
    from ptq_eval.jobs.sensitivity import sensitivity


def __getattr__(name: str) -> Any:
    if name in __all__:
        from importlib import import_module

        return getattr(import_module(f"ptq_eval.{_JOBS.get(name, 'jobs.run')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
