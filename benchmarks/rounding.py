"""How far δ moves by chance: many roundings as good as one another, against the spread that each of them predicts.

On the last checkpoint of each run, every group of weights is rounded to nearest on a grid of the usual step whose
offset is drawn at random.  The errors of two such roundings are uniform and independent (a dithered quantizer:
Schuchman 1964), and δ of each is measured on the same windows.  The floor predicts the spread of δ of the
text; how a rounding interacts with the few windows that were drawn is in the standard error of δ.  So it is measured as
the covariance, over roundings, of δ on two halves of the windows, and compared with what the noise floor
(`measure.floor`) says of each rounding from the gradient on a sample of the windows, without any other rounding.

The first order has another slope where the model is rounded: averaged over roundings, the loss has the gradient that
its roundings have on average, not that of full precision.  So the spread is also predicted with the mean gradient at
`SLOPES` other roundings in place of the floor's, which would cost a pass backward for every bit-width.

AWQ's search for scales, for each matrix or jointly for those that share an input, gives two roundings of one method
that are as good: the difference of their δ is compared with the floor of a difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from benchmarks.coverage import EMBEDDED
from benchmarks.harness import SEED, Claim, Outcome, Setup
from benchmarks.subjects import demo_options, last_of_each_run
from ptq_eval.config.run import RunConfig
from ptq_eval.measure.calibration import quantize
from ptq_eval.measure.evaluate import evaluate
from ptq_eval.measure.floor import GRADIENT_WINDOWS, Floor, Slopes, places
from ptq_eval.measure.scoring import Scores
from ptq_eval.measure.session import Session
from ptq_eval.measure.trials import Workload, make_plan
from ptq_eval.measure.variants import Variant
from quantizers import Scheme, get_quantizer, grid

BITS = (2, 3, 4, 8)
DRAWS = 120
"""Roundings: the measured spread is then known to 6 to 9 %, with 30 to 13 to 20 %."""
SLOPES = 8
LIMITS = (0.7, 1.5)
"""Of the ratio of the predicted to the measured spread, at any bit-width."""
MOST_ERRORS = 3.0
"""Of the difference between two searches, in its standard deviation."""


def measure(setup: Setup) -> Outcome:
    """The ratio of predicted and measured spread for each checkpoint and bit-width, and the two searches of AWQ."""
    outcome = Outcome()
    for text in setup.texts or (EMBEDDED,):
        name = text.rsplit("/", 1)[-1]
        found: dict[str, list[dict[str, Any]]] = {"cells": [], "searches": []}
        for checkpoint in last_of_each_run(setup.trajectory):
            options = {**demo_options(), "quantizers": "awq", "eval_text": text}
            work = make_plan([checkpoint], RunConfig(**options)).workloads[0]
            with Session.opened(work) as session:
                floor = Floor(session)
                found["cells"] += cells(work, session, floor, 6 if setup.quick else DRAWS)
                found["searches"] += searches(work, session, floor)
        outcome.claims += claims(name, **found)
        outcome.details[name] = found
    return outcome


def claims(name: str, cells: list[dict[str, Any]], searches: list[dict[str, Any]]) -> Iterator[Claim]:
    """Of each bit-width the ratio of predicted and measured spread, and the largest difference of two searches."""
    for bits in BITS:
        own = [cell for cell in cells if cell["bits"] == bits and cell["measured"]]
        text = f"{name}: chance of one rounding at {bits} bits, predicted / measured standard deviation of δ"
        if own:
            ratios = [cell["predicted"] / cell["measured"] for cell in own]
            middle = float(np.exp(np.mean(np.log(ratios))))
            yield Claim(text, middle, min(ratios), max(ratios), LIMITS[0], "at least")
            yield Claim(f"{text} (not overstated)", middle, min(ratios), max(ratios), LIMITS[1])
            ratios = [cell["predicted, slope of other roundings"] / cell["measured"] for cell in own]
            middle = float(np.exp(np.mean(np.log(ratios))))
            yield Claim(f"{text}, slope of other roundings", middle, min(ratios), max(ratios))
    gaps = [abs(one["difference"]) / one["predicted"] for one in searches]
    text = f"{name}: AWQ's search by matrix or jointly, difference of δ in standard deviations of the floor, largest"
    yield Claim(text, max(gaps), min(gaps), max(gaps), MOST_ERRORS)


def cells(work: Workload, session: Session, floor: Floor, draws: int) -> Iterator[dict[str, Any]]:
    """For each bit-width: mean δ of `draws` roundings, the standard deviation of δ of the text, and that predicted."""
    size, model = group_size(work), session.model
    for bits in BITS:
        generator = torch.Generator().manual_seed(SEED + bits)
        variants = []
        for _ in range(draws):
            weights = {name: model.weight(name).float() for name in model.linears()}
            variants.append({name: rounded(w, bits, size, generator) for name, w in weights.items()})
        full, scores = evaluate(model, session.evaluation, variants)
        tokens = session.evaluation.shape[1] - 1
        deltas = (np.array([score.nll for score in scores]) - np.array(full.nll)) / tokens
        halves = deltas[:, 0::2].mean(axis=1), deltas[:, 1::2].mean(axis=1)
        share = floor.second_order()["second_order"]
        first = [floor.rounding(v)["rounding"] for v in variants]
        second = [share * float(np.mean(score.kl)) / tokens for score in scores]
        moved = elsewhere(session, variants)
        yield {
            "checkpoint": work.checkpoint.name,
            "bits": bits,
            "draws": draws,
            "delta": float(deltas.mean()),
            "measured": math.sqrt(max(float(np.cov(*halves)[0, 1]), 0.0)),
            "measured on these windows": float(deltas.mean(axis=1).std(ddof=1)),
            "first order": float(np.sqrt(np.mean(np.square(first)))),
            "first order, slope of other roundings": moved,
            "second order": float(np.sqrt(np.mean(np.square(second)))),
            "predicted": float(np.sqrt(np.mean(np.square(first) + np.square(second)))),
            "predicted, slope of other roundings": float(np.sqrt(moved**2 + np.mean(np.square(second)))),
        }


def elsewhere(session: Session, variants: list[dict[str, torch.Tensor]]) -> float:
    """The first order's standard deviation of the later `variants`, with the mean slope at the first `SLOPES`."""
    model = session.model
    ids = session.evaluation[places(GRADIENT_WINDOWS, len(session.evaluation))]
    before = {name: model.weight(name).clone() for name in model.linears()}
    chosen, rest = variants[: min(SLOPES, len(variants) // 2)], variants[min(SLOPES, len(variants) // 2) :]
    found = []
    for variant in chosen:
        for name, weight in variant.items():
            model.weight(name).copy_(weight)
        found.append(Slopes.of(model, ids))
    for name, weight in before.items():
        model.weight(name).copy_(weight)
    means = (
        {name: torch.stack([half[name] for half in halves]).mean(0) for name in before}
        for halves in ([one.first for one in found], [one.second for one in found])
    )
    slopes = Slopes(*means)
    return float(np.sqrt(np.mean([slopes.rounding(model, variant) ** 2 for variant in rest])))


def searches(work: Workload, session: Session, floor: Floor) -> Iterator[dict[str, Any]]:
    """δ of AWQ with its search by matrix minus that of the joint one, its error over windows, and that predicted."""
    model, tokens = session.model, session.evaluation.shape[1] - 1
    schemes = [Scheme(bits, group_size(work)) for bits in BITS]
    found: list[list[Variant]] = []
    for groups in (None, [(name,) for name in model.linears()]):
        found.append([Variant(get_quantizer("awq"), scheme) for scheme in schemes])
        quantize(model, found[-1], session.calibration, groups=groups)
    _, scores = evaluate(model, session.evaluation, [v.weights for variants in found for v in variants])
    for index, bits in enumerate(BITS):
        own = [(variants[index], scores[index + shift]) for variants, shift in zip(found, (0, len(BITS)))]
        joint, alone = (np.array(score.nll) / tokens for _, score in own)
        predicted = math.hypot(*(spread(floor, variant.weights, score, tokens) for variant, score in own))
        yield {
            "checkpoint": work.checkpoint.name,
            "bits": bits,
            "difference": float((alone - joint).mean()),
            "error over windows": float((alone - joint).std(ddof=1) / math.sqrt(len(joint))),
            "predicted": predicted,
        }


def group_size(work: Workload) -> int | None:
    """That of the run's schemes."""
    assert work.trials[-1].scheme is not None
    return work.trials[-1].scheme.group_size


def spread(floor: Floor, weights: Mapping[str, torch.Tensor], score: Scores, tokens: int) -> float:
    """The standard deviation that the floor gives to δ of one variant: first and second order."""
    share = floor.second_order()["second_order"]
    return math.hypot(floor.rounding(weights)["rounding"], share * float(np.mean(score.kl)) / tokens)


def rounded(weight: torch.Tensor, bits: int, size: int | None, generator: torch.Generator) -> torch.Tensor:
    """`weight` [out, in] rounded to nearest on a grid whose offset is drawn for each group."""
    columns = weight.shape[1]
    groups = grid.to_groups(weight, size or columns)
    scale = grid.find_params(groups, bits, False)[0].unsqueeze(-1)
    offset = torch.rand(scale.shape, generator=generator)
    return grid.from_groups((torch.round(groups / scale + offset) - offset) * scale, columns).contiguous()
