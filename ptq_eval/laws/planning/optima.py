"""The optimum under a budget, for every way to arrive at the model that is served.

Three ways to arrive at a served model of b bits are compared: train at 16 bits and quantize; train at b bits and serve
as trained; train at some P in between and quantize.  The last needs C_w, C_a and C_kv of equation 9 of Kumar et al.;
without them its damage, hence its loss, is the most that the equation allows (`at_most`).  Under a law of formats there
is one way: to train in the format that is served.

Each way is set `against_16`: its loss minus that of training at 16 bits and serving at the same bits, replicate by
replicate, because the interval of a difference is not that of the losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ptq_eval.laws.planning.formulas import HIGH
from ptq_eval.laws.planning.optimum import BITS, Optimum
from ptq_eval.laws.planning.question import Answer

if TYPE_CHECKING:
    from ptq_eval.laws.planning.planner import Planner

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
    trained: list[tuple[str, Any]] = [("served as trained", HIGH)]
    no_precision = planner.lacking("precision")
    no_damage = planner.lacking("damage")
    if not no_precision[0]:
        trained.insert(0, ("served as trained", BITS))
        trained += [("served as trained", bits) for bits in planner.bits if bits != HIGH]
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
    why = _objection(planner, best, P, "memory" in setting) or _too_large(planner, best, bits, setting)
    if not math.isfinite(values["loss"].value) or (bits is not None and "P low" in best.edge):
        return Answer("optimum", f"{label}: {way}", at, why_not=why)
    served = P if bits is None and isinstance(P, float) and P < HIGH and not planner.lacking("damage")[0] else bits
    if planner.formulas.trained_as_served:
        served = None
    if P != HIGH:
        full = planner.search(HIGH, served, **setting)
        values["against_16"] = planner.source.estimate(best.loss - full.loss, log=False)
    beyond = planner.source.beyond(**{name: values[name].value for name in ("N", "D", "P")}, bits=bits)
    searched = bits is not None and not isinstance(P, float)
    return Answer(
        "optimum", f"{label}: {way}", at, values, beyond, why, at_most=searched and not planner.formulas.robust
    )


def _too_large(planner: Planner, best: Optimum, bits: float | None, setting: Mapping[str, Any]) -> str:
    """Whether a model of the given N takes more memory than there is, or ""."""
    memory, held = planner.question.memory, best.P[0] if bits is None else bits
    if memory is None or "N" not in setting or not setting["N"] * held / 8 > memory * (1 + 1e-9):
        return ""
    return "its weights do not fit into --memory"


def _objection(planner: Planner, best: Optimum, P: float | tuple[float, float], limited: bool) -> str:
    """What is wrong with an optimum, or ""."""
    if not math.isfinite(best.loss[0]):
        if isinstance(P, float) and not np.atleast_1d(planner.formulas.share(P))[0] > 0:
            return f"trained at {P:g} bits, no effective parameters are left under this law"
        return "the budget does not even pay for serving"
    if "P low" in best.edge:
        return ALWAYS_LOWER if P == BITS else "no training precision above the serving one is better than that one"
    if "P high" in best.edge and P == BITS:
        return f"P is the most that was searched, {BITS[1]:g} bits"
    at_end = "N low" in best.edge or ("N high" in best.edge and not limited)
    return "N is at the end of the range that was searched" if at_end else ""
