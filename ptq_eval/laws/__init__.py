"""Scaling laws of quantization: the formulas, the fit, its uncertainty, and the critical number of tokens.

numpy and scipy only, so that fitting runs on a laptop without torch.  One law per file, reached through the
`ptq_eval.laws` entry points; `analyse` applies those of the main job to a whole table.
"""

from ptq_eval.laws.analyse import analyse
from ptq_eval.laws.base import Estimate, FitResult, Law, Parameter
from ptq_eval.laws.critical import CriticalTokens, closed_form
from ptq_eval.laws.fitter import fit
from ptq_eval.laws.turning import TurningPoint, turning_point

__all__ = [
    "CriticalTokens",
    "Estimate",
    "FitResult",
    "Law",
    "Parameter",
    "TurningPoint",
    "analyse",
    "closed_form",
    "fit",
    "turning_point",
]
