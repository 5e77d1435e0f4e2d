"""Scaling laws of quantization: the formulas, the fit, its uncertainty, and the critical number of tokens.

numpy and scipy only, so that fitting runs on a laptop without torch.  One law per file, reached through the
`ptq_eval.laws` entry points; `analyse` applies those of the main job to a whole table.  For numbers alone there are
plain functions (`delta_ptq`, `critical_tokens`, …) that take published constants or a fit, and `simulate` draws data
from any law.
"""

from ptq_eval.laws.analyse import analyse
from ptq_eval.laws.base import Estimate, FitResult, Law, Parameter
from ptq_eval.laws.comparison.crossval import HeldOut, held_out
from ptq_eval.laws.critical import CriticalTokens, closed_form
from ptq_eval.laws.estimation.diagnostics import leverage
from ptq_eval.laws.estimation.fitter import fit, minimum
from ptq_eval.laws.estimation.profile import intervals as profile_intervals
from ptq_eval.laws.functions import (
    compute_cost,
    critical_tokens,
    delta_ptq,
    effective_params,
    loss,
    optimal_precision,
)
from ptq_eval.laws.presets import (
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
from ptq_eval.laws.turning import TurningPoint, turning_point

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
    "CriticalTokens",
    "Estimate",
    "FitResult",
    "HeldOut",
    "Law",
    "Parameter",
    "Preset",
    "TurningPoint",
    "analyse",
    "closed_form",
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
