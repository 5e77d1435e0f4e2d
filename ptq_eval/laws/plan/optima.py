"""The optimum under a budget, for every way to arrive at the model that is served.

Three ways to arrive at a served model of b bits are compared: train at 16 bits and quantize; train at b bits and serve
as trained; train at some P in between and quantize.  The last needs C_w, C_a and C_kv of equation 9 of Kumar et al.;
without them its damage, hence its loss, is the most that the equation allows (`at_most`).  Under a law of formats there
is one way: to train in the format that is served.

The budget is the most that may be spent.  A model that is quantized takes no more tokens than D_crit, so at a given N,
or at given memory, the optimum may leave part of the budget: `stops_at_critical`, with the share `spent`.

Each way is set `against_16`: its loss minus that of training at 16 bits and serving at the same bits, replicate by
replicate, because the interval of a difference is not that of the losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ptq_eval.laws.plan.model import HIGH
from ptq_eval.laws.plan.optimum import BITS, Optimum
from ptq_eval.laws.plan.question import Answer

if TYPE_CHECKING:
    from ptq_eval.laws.plan.planner import Planner

AT_CEILING = f"{BITS[1]:g} bits are best, and more were not searched"
ALWAYS_LOWER = "fewer bits are always better under this law: P is the least that was searched"


def optima(planner: Planner) -> Iterator[Answer]:
    """The best N, D and P under the budget: free, at given N, at given memory; for every way to serve."""
    question = planner.question
    if question.spent is None:
        return
    settings: list[tuple[str, dict[str, float | None]]] = [("N, D and P free", {})]
    if question.memory is not None:
        settings.append(("limited memory", {"memory": question.memory}))
    if question.params is not None:
        settings.append(("N given", {"N": question.params}))
    for label, setting in settings:
        yield from _optima(planner, label, setting)


def _optima(planner: Planner, label: str, setting: Mapping[str, Any]) -> Iterator[Answer]:
    conditions = {"budget": planner.question.spent, "served_tokens": planner.question.served_tokens, **setting}
    why, missing = planner.lacking("loss", N=setting.get("N"))
    if why:
        yield Answer("optimum", label, conditions, why_not=why, missing=missing)
        return
    trained: list[tuple[str, Any]] = [(_at(HIGH), HIGH)]
    no_precision = planner.lacking("precision")
    no_damage = planner.lacking("damage")
    if not no_precision[0]:
        trained.insert(0, ("served as trained", BITS))
        trained += [(_at(bits), bits) for bits in planner.bits if bits != HIGH]
    for way, P in trained:
        yield _best(planner, label, way, conditions, setting, P, None)
    own = planner.formulas.trained_as_served
    for bits in () if no_damage[0] else (bits for bits in planner.bits if bits < HIGH or own):
        way = f"trained in {planner.label(bits)}" if own else f"quantized to {planner.label(bits)}"
        for P in (planner.trained(bits), *([(bits, HIGH)] if planner.formulas.unified else [])):
            yield _best(planner, label, way, conditions, setting, P, bits)
    for what, (why, missing) in (("the best training precision", no_precision), ("the loss served", no_damage)):
        if why:
            yield Answer("optimum", label, conditions, why_not=f"{what}: {why}", missing=missing)


def _at(bits: float) -> str:
    return f"served as trained, at {bits:g} bits"


def _best(
    planner: Planner,
    label: str,
    way: str,
    conditions: Mapping[str, Any],
    setting: Mapping[str, Any],
    P: Any,
    bits: float | None,
) -> Answer:
    best = planner.search(P, bits, **setting)
    values = {name: planner.source.estimate(getattr(best, name)) for name in ("N", "D", "P", "loss")}
    at = {**conditions, **({} if bits is None else {"serve_bits": bits})}
    if isinstance(P, float):
        at["train_bits"] = P
    spent = planner.source.estimate(best.spent, log=False)
    values["spent"] = replace(spent, high=min(spent.high, 1.0))  # an interval around a median knows of no limit
    why = _objection(planner, best, P) or _too_large(planner, best, bits, setting) or _unsure(planner, best, bits)
    if not math.isfinite(values["loss"].value) or (bits is not None and "P low" in best.edge):
        return Answer("optimum", f"{label}: {way}", at, why_not=why)
    served = P if bits is None and isinstance(P, float) and P < HIGH and not planner.lacking("damage")[0] else bits
    if planner.formulas.trained_as_served:
        served = None
    if P != HIGH:
        full = planner.search(HIGH, served, **setting)
        if math.isfinite(full.loss[0]):  # what 16 bits cost may be more than the budget
            values["against_16"] = planner.source.estimate(best.loss - full.loss, log=False)
    beyond = planner.source.beyond(**{name: values[name].value for name in ("N", "D", "P")}, bits=bits)
    at_most = bits is not None and not isinstance(P, float) and not planner.formulas.robust
    named = ("optimum", f"{label}: {way}")
    return Answer(*named, at, values, beyond, why, at_most=at_most, stops_at_critical=best.stops)


def _too_large(planner: Planner, best: Optimum, bits: float | None, setting: Mapping[str, Any]) -> str:
    """Whether a model of the given N takes more memory than there is, or ""."""
    memory, held = planner.question.memory, best.P[0] if bits is None else bits
    if memory is None or "N" not in setting or not setting["N"] * held / 8 > memory * (1 + 1e-9):
        return ""
    return "its weights do not fit into --memory"


def _unsure(planner: Planner, best: Optimum, bits: float | None) -> str:
    """Why the D_crit that an optimum stops at is not to be relied on, or ""."""
    why = planner.source.critical_tokens(float(best.N[0]), bits)[1] if best.stops and bits is not None else ""
    return f"it stops at a D_crit that the plan does not give: {why}" if why else ""


def _objection(planner: Planner, best: Optimum, P: float | tuple[float, float]) -> str:
    """What is wrong with an optimum, or ""."""
    if not math.isfinite(best.loss[0]):
        if isinstance(P, float) and not np.atleast_1d(planner.formulas.share(P))[0] > 0:
            return f"trained at {P:g} bits, no effective parameters are left under this law"
        return "the budget does not even pay for serving"
    if "P low" in best.edge:
        return ALWAYS_LOWER if P == BITS else "no training precision above the serving one is better than that one"
    if "P high" in best.edge and P == BITS:
        return AT_CEILING
    return "N is at the end of the range that was searched" if {"N low", "N high"} & set(best.edge) else ""
