"""Cases: the trials of one checkpoint with the weights that each carries and how it rounds what it computes.

Trials that differ in their activations or cache alone share one variant, so its weights are quantized once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ptq_eval.errors import UnsupportedModelError
from ptq_eval.measure.evaluate import Evaluator
from ptq_eval.measure.scoring import Scores
from ptq_eval.measure.session import Session
from ptq_eval.measure.simulation import Simulation, Transform
from ptq_eval.measure.variants import Variant
from ptq_eval.records import WEIGHTS_KEPT, Trial
from ptq_eval.runtime import Cache, Rounding, is_runtime, of_weights

Cell = Sequence[Trial]
"""Trials that have the same weights."""


def cells_of(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Trials by their weights, in order of first appearance."""
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        found.setdefault(of_weights(trial).key(), []).append(trial)
    return list(found.values())


def static_windows(trial: Trial) -> str:
    """The digest of the windows on which the static ranges of a trial are observed; empty without any."""
    parts = [trial.activations, *(trial.cache.get(name, {}) for name in ("keys", "values"))]
    return next((part["windows"] for part in parts if part.get("windows")), "")


@dataclass
class Case:
    """A trial on its way through the windows; `variant` is None where the weights are kept."""

    trial: Trial
    variant: Variant | None = None
    simulation: Simulation | None = None
    failure: str = ""
    """Why there is nothing to measure; empty where there is."""

    @property
    def carried(self) -> Mapping[str, Any]:
        """The parameters that the model carries in this case."""
        return self.variant.carried if self.variant is not None else {}


def cases_of(session: Session, cells: Sequence[Cell], *, with_codes: bool = False) -> list[Case]:
    """The cases of some cells, their weights quantized and their ranges observed."""
    quantized = [cell for cell in cells if cell[0].quantizer != WEIGHTS_KEPT]
    made = session.quantized([of_weights(cell[0]) for cell in quantized], with_codes=with_codes)
    variants = {id(cell): variant for cell, variant in zip(quantized, made)}
    return [_case(session, trial, variants.get(id(cell))) for cell in cells for trial in cell]


def _case(session: Session, trial: Trial, variant: Variant | None) -> Case:
    case = Case(trial, variant, failure=variant.failure if variant is not None else "")
    if case.failure or not is_runtime(trial):
        return case
    activations = Rounding(**trial.activations) if trial.activations else None
    cache = Cache.from_dict(trial.cache) if trial.cache else None
    case.simulation = Simulation(session.model, activations, cache, _transforms(variant) if variant else None)
    windows = session.work.calibrations.get(static_windows(trial))
    calibration = None if windows is None else torch.tensor(windows.ids, dtype=torch.long)
    try:
        case.simulation.prepare(session.model.parameters_of(case.carried), session.evaluation, calibration)
    except UnsupportedModelError as error:
        case.failure = str(error)
    return case


def _transforms(variant: Variant) -> dict[str, Transform]:
    names = {*variant.input_scales, *variant.rotations}
    return {name: Transform(variant.input_scales.get(name), variant.rotations.get(name)) for name in names}


def scored(evaluator: Evaluator, cases: Sequence[Case]) -> Iterator[tuple[list[int], Scores]]:
    """What `Evaluator.score` gives for each case; nothing for those that failed or answer a task."""
    possible = [case for case in cases if not case.failure and not case.trial.task]
    scoring = {id(case) for case in possible}
    carried, simulations = [case.carried for case in possible], [case.simulation for case in possible]
    found = iter(evaluator.score(carried, simulations, [case.trial.key() for case in possible]))
    for case in cases:
        yield next(found) if id(case) in scoring else ([], Scores())
