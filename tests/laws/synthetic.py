"""Tables of measurements made from known constants, in the shape that `analyse` reads."""

from __future__ import annotations

import numpy as np

from ptq_eval.laws.fit.folder import fit_points
from ptq_eval.laws.plan.stored import from_stored
from ptq_eval.report import with_texts
from ptq_eval.results.points import read

KUMAR = {"C_T": 0.0598, "gamma_D": 0.5068, "gamma_N": 0.3439, "gamma_post": 0.5907}
KUMAR_LOSS = {"E": 2.7648, "A": 4.299e3, "alpha": 0.4965, "B": 1.806e4, "beta": 0.4965}
SMALL_LOSS = {"E": 2.0, "A": 0.0, "alpha": 0.5, "B": 200.0, "beta": 0.4}
RATIO = {"C": 0.4, "gamma": 0.45, "gamma_post": 0.9}
RATIOS = np.geomspace(5, 400, 10)


def eq2(theta, N, D, P):
    return theta["C_T"] * D ** theta["gamma_D"] / N ** theta["gamma_N"] * np.exp(-P / theta["gamma_post"])


def ratio(theta, N, D, P):
    return theta["C"] * (D / N) ** theta["gamma"] * np.exp(-P / theta["gamma_post"])


def chinchilla(theta, N, D):
    return theta["E"] + theta["A"] / N ** theta["alpha"] + theta["B"] / D ** theta["beta"]


def points(law, theta, sizes, ratios, bits, rng, *, scatter=0.0, by_checkpoint=0.0, by_run=0.0, noise=0.02, windows=48):
    """Columns for a degradation law: relative scatter per point, checkpoint and run, and shared windows."""
    grid = [(i, j, N, N * r, float(b)) for i, N in enumerate(sizes) for j, r in enumerate(ratios) for b in bits]
    run, place, N, D, P = (np.array(column) for column in zip(*grid))
    true = law(theta, N, D, P)
    run_effect, checkpoint_effect = rng.normal(size=len(sizes)), rng.normal(size=(len(sizes), len(ratios)))
    factor = 1 + scatter * rng.normal(size=len(true)) + by_run * run_effect[run]
    factor = factor + by_checkpoint * checkpoint_effect[run, place]
    shared = rng.normal(size=windows)
    size = noise * np.sqrt(np.abs(true))[:, None]
    per_window = (true * factor)[:, None] + size * (shared + rng.normal(size=(len(true), windows)))
    return {
        "N": N,
        "D": D,
        "P": P,
        "run": run,
        "checkpoint": np.array([f"{r}@{p}" for r, p in zip(run, place)]),
        "delta": per_window.mean(1),
        "se": per_window.std(1, ddof=1) / np.sqrt(windows),
        "windows": per_window,
    }


def source(rows, windows, *, quantizer=None, params=None, name="out", **options):
    """What a plan gets from the output folder of a run that measured these rows."""
    found = fit_points(read(rows)[0], windows, **options)
    kept = {str(i): draws for i, draws in enumerate(found.replicates)}
    return from_stored(with_texts(found.content), name=name, quantizer=quantizer, params=params, replicates=kept)


def table(
    rng,
    *,
    sizes=(80_000.0, 160_000.0),
    ratios=RATIOS,
    bits=(2, 3, 4, 8),
    quantizers=("rtn",),
    delta=ratio,
    theta=RATIO,
    loss=SMALL_LOSS,
    training=0.002,
    noise=0.01,
    windows=48,
    rates=None,
):
    """(rows, windows by key).  `training` is the scatter of checkpoints and `noise` that of a window, in nats."""
    rows, by_key = [], {}
    difficulty = rng.normal(0, 0.3, windows)
    for i, N in enumerate(sizes):
        for j, r in enumerate(ratios):
            D = N * r
            base = chinchilla(loss, N, D) + training * rng.normal()
            full = base + difficulty + noise * rng.normal(size=windows)
            common = {"run": f"size{i}", "step": j, "tokens": D, "params": N, "tokens_per_param": r}
            common |= {"learning_rate": rates[j] if rates is not None else 3e-3, "status": "ok"}
            common |= {"schedule_phase": "" if rates is not None else "constant", "loss_fp": full.mean()}
            key = f"{i}-{j}-none"
            rows.append({**common, "quantizer": "none", "bits": float("nan"), "key": key})
            by_key[key] = (full, full)
            for quantizer in quantizers:
                for b in bits:
                    d = delta(theta, N, D, b)
                    extra = d * (1 + 0.03 * rng.normal()) + noise * np.sqrt(abs(d)) * rng.normal(size=windows)
                    key = f"{i}-{j}-{quantizer}-{b}"
                    by_key[key] = (full + extra, full)
                    values = {"loss_q": (full + extra).mean(), "delta": extra.mean()}
                    values["delta_se"] = extra.std(ddof=1) / np.sqrt(windows)
                    how = {"group_size": 32, "symmetric": False, "calibration": "shared", "key": key}
                    rows.append({**common, "quantizer": quantizer, "bits": b, **how, **values})
    return rows, by_key
