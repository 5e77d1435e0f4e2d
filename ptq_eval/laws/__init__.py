"""Scaling laws of quantization: the formulas, the fit, its uncertainty, and the critical number of tokens.

numpy and scipy only, so that fitting runs on a laptop without torch.  One law per file, reached through the
`ptq_eval.laws` entry points; `analyse` applies the laws of the main job to a whole table.  For numbers alone there are
plain functions (`delta_ptq`, `critical_tokens`, …) that take published constants or a fit, and `simulate` draws data
from any law.
"""

from ptq_eval.laws.base import Coverage, Estimate, FitKind, FitResult, FitStatus, Law, Parameter
from ptq_eval.laws.calculator import (
    compute_cost,
    critical_tokens,
    delta_ptq,
    effective_params,
    loss,
    optimal_precision,
)
from ptq_eval.laws.compare.crossval import HeldOut, held_out
from ptq_eval.laws.findings import Caution, Finding, Why
from ptq_eval.laws.fit.diagnostics import leverage
from ptq_eval.laws.fit.fit import fit, minimum
from ptq_eval.laws.fit.folder import analyse
from ptq_eval.laws.fit.profile import intervals as profile_intervals
from ptq_eval.laws.formulas.presets import (
    CHEN_2025,
    EPOCH_2024,
    EPOCH_2024_HUBER,
    EPOCH_2024_LAD,
    HOFFMANN_2022,
    KUMAR_2024,
    KUMAR_2024_FP,
    OUYANG_2024,
    PRESETS,
    SUN_2025,
    Preset,
)
from ptq_eval.laws.simulate import grid, paper_design, simulate
from ptq_eval.laws.turning.observed import TurningPoint, turning_point
from ptq_eval.laws.turning.predicted import CriticalTokens
from ptq_eval.laws.turning.verdict import Verdict, VerdictKind

__all__ = [
    "CHEN_2025",
    "EPOCH_2024",
    "EPOCH_2024_HUBER",
    "EPOCH_2024_LAD",
    "HOFFMANN_2022",
    "KUMAR_2024",
    "KUMAR_2024_FP",
    "OUYANG_2024",
    "PRESETS",
    "SUN_2025",
    "Caution",
    "Coverage",
    "CriticalTokens",
    "Estimate",
    "Finding",
    "FitKind",
    "FitResult",
    "FitStatus",
    "HeldOut",
    "Law",
    "Parameter",
    "Preset",
    "TurningPoint",
    "Verdict",
    "VerdictKind",
    "Why",
    "analyse",
    "compute_cost",
    "critical_tokens",
    "delta_ptq",
    "effective_params",
    "fit",
    "grid",
    "held_out",
    "leverage",
    "loss",
    "minimum",
    "optimal_precision",
    "paper_design",
    "profile_intervals",
    "simulate",
    "turning_point",
]
