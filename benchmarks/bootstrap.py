"""How fast is the bootstrap?  All refits side by side against scipy's L-BFGS-B, one after the other.

Two laws: equation 2 of Kumar et al. on the paper's design (4 N × 5 D × 4 bits, 3 % noise, simulated), with the default
loss; and Chinchilla's law on the 240 points of Epoch's re-analysis, with the default loss and with their log-Huber
one.  The points are read from
`$PTQ_EVAL_EPOCH_DATA` (columns `Model Size`, `Training FLOP`, `loss`); without it, 240 points are simulated.

Both sides refit the same replicates from the same start, with the same weights, objective, bounds and coordinates.
L-BFGS-B is measured on a sample of the replicates and scaled up, in three ways: as scipy calls it when no gradient is
given (finite differences), with our exact gradient, and with the exact gradient and the objective divided by its value
at the start.  The last is the strongest opponent: the default stopping rule compares a decrease with
max(|objective|, 1), so without the division it stops far too early where the objective is 1e-3.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize

from benchmarks.harness import SEED, Claim, Outcome, Setup, clock
from ptq_eval.laws import KUMAR_2024, Law, paper_design, simulate
from ptq_eval.laws.fit import bootstrap as resampling
from ptq_eval.laws.fit.fit import minimum
from ptq_eval.laws.fit.solver import Solution, search_bounds
from ptq_eval.laws.formulas.chinchilla import Chinchilla
from ptq_eval.laws.formulas.kumar import KumarPTQ

DATA = "PTQ_EVAL_EPOCH_DATA"
REFITS, SAMPLE, TURNS = 1000, 100, 5
FASTER = 50.0
WAYS = {"finite differences": (False, False), "exact gradient": (True, False), "exact gradient, scaled": (True, True)}
"""Ways of calling it: whether with the exact gradient, and whether with a scaled objective."""

NO_WORSE = 1e-9
"""Relative difference of two objectives that is called none."""


@dataclass(frozen=True)
class Case:
    """A law, its data, and the loss to fit it with."""

    what: str
    law: Law
    data: Mapping[str, np.ndarray]
    loss: str


def measure(setup: Setup) -> Outcome:
    """Time and objectives of both ways, for both laws."""
    outcome = Outcome()
    for case in (equation_2(), chinchilla("huber"), chinchilla("log-huber")):
        claims, details = _compare(case, 50 if setup.quick else REFITS, 5 if setup.quick else SAMPLE)
        outcome.claims += claims
        outcome.details[case.what] = details
    return outcome


def equation_2() -> Case:
    """Equation 2 on the paper's design."""
    data = simulate(KumarPTQ(), KUMAR_2024, paper_design(), noise=0.03, seed=SEED)
    return Case(f"eq. 2, {len(data['delta'])} points", KumarPTQ(), data, "huber")


def chinchilla(loss: str) -> Case:
    """Chinchilla's law on Epoch's points, or on as many simulated ones."""
    path = os.environ.get(DATA)
    if path:
        data, of = epoch_points(path), "of Epoch"
    else:
        rng = np.random.default_rng(SEED)
        design = {"N": np.exp(rng.uniform(18, 23.5, 240)), "D": np.exp(rng.uniform(20, 25.5, 240))}
        data = simulate(Chinchilla(), KUMAR_2024, design, noise=0.02, seed=SEED)
        of = "simulated"
    return Case(f"Chinchilla's law, {len(data['loss'])} points {of}, {loss}", Chinchilla(), data, loss)


def epoch_points(path: str) -> dict[str, np.ndarray]:
    """N, D = C/6N and loss of Epoch's table, without the five highest losses."""
    with open(path, encoding="utf-8", newline="") as handle:
        rows = sorted(csv.DictReader(handle), key=lambda row: float(row["loss"]))[:-5]
    N, C, loss = (np.array([float(row[name]) for row in rows]) for name in ("Model Size", "Training FLOP", "loss"))
    return {"N": N, "D": C / (6 * N), "loss": loss}


def _compare(case: Case, refits: int, sample: int) -> tuple[list[Claim], dict[str, Any]]:
    solution = minimum(case.law, case.data, loss=case.loss)
    responses = resampling.resampled(solution, seed=SEED, n_boot=refits)
    ours = resampling.refit(solution, responses)
    times: dict[str, list[float]] = {"ours": []}
    theirs: dict[str, list[float]] = {}
    parts = np.array_split(np.arange(refits)[: sample // TURNS * TURNS], TURNS)
    for part in parts:
        times["ours"].append(clock(lambda: resampling.refit(solution, responses)).cpu / refits)
        for name, (exact, scaled) in WAYS.items():
            found: list[float] = []
            scale = 1 / max(solution.objective, 1e-300) if scaled else 1.0
            seconds = clock(lambda: found.extend(_loop(solution, responses[part], scale, exact)))  # noqa: B023
            times.setdefault(name, []).append(seconds.cpu / len(part))
            theirs.setdefault(name, []).extend(found)
    claims = [
        _speed(f"{case.what}: refits per second, relative to L-BFGS-B in a loop, {name}", times, name, FASTER)
        for name in WAYS
    ]
    indices = np.concatenate(parts)
    for name, values in theirs.items():
        excess = (ours.values[indices] - values) / np.array(values)
        what = f"{case.what}: objective above that of L-BFGS-B ({name}), relative, largest of {len(excess)}"
        claims.append(Claim(what, float(excess.max()), float(excess.min()), float(excess.max()), NO_WORSE))
    return claims, {
        "refits": refits,
        "refits_by_l_bfgs_b": len(indices),
        "cpu_seconds_per_refit": times,
        "converged": float(ours.converged.mean()),
    }


def _speed(what: str, times: Mapping[str, list[float]], name: str, limit: float | None) -> Claim:
    ratios = [slow / fast for slow, fast in zip(times[name], times["ours"])]
    return Claim(what, float(np.median(ratios)), min(ratios), max(ratios), limit, "at least", "×")


def _loop(solution: Solution, responses: np.ndarray, scale: float, exact: bool) -> list[float]:
    """The objectives that L-BFGS-B reaches, one replicate after the other."""
    problem, bounds = solution.problem, list(zip(*search_bounds(solution.problem.law)))
    k = problem.loss.k

    def cost(point: np.ndarray, response: np.ndarray) -> tuple[float, np.ndarray]:
        r, slopes = (array[0] for array in problem.linearised(point[None], response))
        return scale * float(problem.loss.rho(r).sum()), -scale * (slopes @ np.clip(r, -k, k))

    def value(point: np.ndarray, response: np.ndarray) -> float:
        return scale * float(problem.values(point[None], response)[0])

    function = cost if exact else value
    done = [minimize(function, solution.point, (z,), "L-BFGS-B", jac=exact, bounds=bounds) for z in responses]
    return [float(one.fun) / scale for one in done]
