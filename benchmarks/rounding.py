"""How far δ moves by chance: many roundings as good as one another, against the spread that each of them predicts.

On the last checkpoint of each run, the scale of every group of weights is enlarged by a random factor of up to one step
of the grid, 1 + u/(2^b − 1), and the weights are rounded to nearest on that grid: other roundings of nearly the same
error.  δ of each is measured on the same windows.  The standard deviation of these δ is compared with what the noise
floor (`measure.floor`) says of each rounding from the gradient on a sample of the windows, without any other rounding.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from benchmarks.harness import SEED, Claim, Outcome, Setup
from benchmarks.subjects import demo_options, last_of_each_run
from ptq_eval.config import RunConfig
from ptq_eval.measure.evaluate import evaluate
from ptq_eval.measure.floor import Floor
from ptq_eval.measure.session import Session
from ptq_eval.measure.trials import Workload, make_plan
from quantizers import grid

BITS = (3, 4, 8)
LIMITS = (0.5, 2.0)
"""Of the ratio of the predicted to the measured spread."""


def measure(setup: Setup) -> Outcome:
    """The ratio of predicted and measured spread for each checkpoint and bit-width."""
    outcome = Outcome(details={"cells": []})
    draws = 6 if setup.quick else 30
    for checkpoint in last_of_each_run(setup.trajectory):
        work = make_plan([checkpoint], RunConfig(**{**demo_options(), "quantizers": "rtn"})).workloads[0]
        outcome.details["cells"] += cells(work, draws)
    ratios = [cell["predicted"] / cell["measured"] for cell in outcome.details["cells"]]
    which = ", ".join(map(str, BITS))
    text = f"chance of one rounding, predicted / measured standard deviation of δ, {which} bits"
    middle = float(np.exp(np.mean(np.log(ratios))))
    outcome.claims = [
        Claim(text, middle, min(ratios), max(ratios), LIMITS[0], "at least"),
        Claim(f"{text} (not overstated)", middle, min(ratios), max(ratios), LIMITS[1]),
    ]
    return outcome


def cells(work: Workload, draws: int) -> list[dict[str, Any]]:
    """For each bit-width: mean δ of `draws` roundings, their standard deviation, and the one predicted."""
    assert work.trials[-1].scheme is not None
    size = work.trials[-1].scheme.group_size
    found = []
    with Session.opened(work) as session:
        floor, model = Floor(session), session.model
        for bits in BITS:
            generator = torch.Generator().manual_seed(SEED + bits)
            variants = []
            for _ in range(draws):
                weights = {name: model.weight(name).float() for name in model.linears()}
                variants.append({name: rounded(w, bits, size, generator) for name, w in weights.items()})
            full, scores = evaluate(model, session.evaluation, variants)
            tokens = len(full.nll) * (session.evaluation.shape[1] - 1)
            deltas = [(math.fsum(score.nll) - math.fsum(full.nll)) / tokens for score in scores]
            predicted = [floor.rounding(variant)["rounding"] for variant in variants]
            found.append(
                {
                    "checkpoint": work.checkpoint.name,
                    "bits": bits,
                    "draws": draws,
                    "delta": float(np.mean(deltas)),
                    "measured": float(np.std(deltas, ddof=1)),
                    "predicted": float(np.sqrt(np.mean(np.square(predicted)))),
                }
            )
    return found


def rounded(weight: torch.Tensor, bits: int, size: int | None, generator: torch.Generator) -> torch.Tensor:
    """`weight` [out, in] rounded to nearest on a grid that is coarser by a random factor for each group."""
    columns = weight.shape[1]
    groups = grid.to_groups(weight, size or columns)
    scale, zero = grid.find_params(groups, bits, False)
    scale = scale * (1 + torch.rand(scale.shape, generator=generator) / (2**bits - 1))
    decoded = grid.decode(grid.encode(groups, scale, zero, bits), scale, zero)
    return grid.from_groups(decoded, columns).contiguous()
