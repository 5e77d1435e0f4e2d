"""A synthetic study: two sizes, ten checkpoints each, three quantizers at four bit-widths.

The deltas are drawn from equation 2 of arXiv 2411.04330 with relative scatter and evaluation noise, on top of a
Chinchilla curve, so that the two-bit loss of the weaker quantizers turns upward inside the range.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from ptq_eval.report import with_texts
from ptq_eval.results.table import COLUMNS
from ptq_eval.runtime import COLUMNS as RUNTIME

BASE = {"E": 1.6, "A": 18.0, "alpha": 0.34, "B": 190.0, "beta": 0.37}
GAMMA_D, GAMMA_N = 0.52, 0.33
QUANTIZERS = {"rtn": (0.115, 0.78), "gptq": (0.055, 0.72), "awq": (0.072, 0.70)}
BITS = (2, 3, 4, 8)
RATIOS = (5, 8, 13, 20, 32, 50, 80, 130, 200, 320)
RUNS = {"small": 80_000, "large": 150_000}


def loss_fp(n, d):
    return BASE["E"] + BASE["A"] * n ** -BASE["alpha"] + BASE["B"] * d ** -BASE["beta"]


def delta(quantizer, n, d, bits):
    factor, gamma_post = QUANTIZERS[quantizer]
    return factor * d**GAMMA_D / n**GAMMA_N * math.exp(-bits / gamma_post)


def critical(quantizer, n, bits):
    factor, gamma_post = QUANTIZERS[quantizer]
    top = BASE["beta"] * BASE["B"] * n**GAMMA_N * math.exp(bits / gamma_post)
    return (top / (GAMMA_D * factor)) ** (1 / (GAMMA_D + BASE["beta"]))


def _row(run, ratio, quantizer, bits, rng):
    n = RUNS[run]
    d = ratio * n
    full = loss_fp(n, d) + rng.normal(0, 0.002)
    true = delta(quantizer, n, d, bits) if bits else 0.0
    se = 0.0004 + 0.012 * true
    got = true * math.exp(rng.normal(0, 0.03)) + rng.normal(0, se) if bits else math.nan
    quantized = full + got if bits else math.nan
    gptq = quantizer == "gptq"
    values = {
        "run": run, "step": int(d // 2048), "tokens": d, "params": n, "tokens_per_param": d / n,
        "quantizer": quantizer, "bits": bits or math.nan, "group_size": 16 if bits else math.nan,
        "symmetric": False if bits else None, "calibration": ("sequential" if gptq else "shared") if bits else "",
        "loss_fp": full, "loss_q": quantized, "delta": got, "delta_se": se if bits else math.nan,
        "ppl_fp": math.exp(full), "ppl_q": math.exp(quantized), "kl": abs(got), "top1_agreement": math.exp(-true),
        "bits_per_weight": bits + 2.0 if bits else math.nan, "windows": 64,
        "protocol": "stdlib/eval/128x64/first", "status": "ok", "loss_fp_se": 0.02, "loss_q_se": 0.02,
        "kl_se": se, "top1_se": 0.003, "bpb_fp": full * 0.45, "bpb_q": quantized * 0.45, "learning_rate": 3e-3,
        "schedule_phase": "constant", "stage": "", "options": "{}", "tokens_source": "explicit",
        "params_source": "explicit", "params_convention": "non_embedding", "dtype": "float32",
        "device": "cpu", "message": "",
        "damping_max": 0.01 if gptq else math.nan, "damping_retries": int(gptq and bits == 2 and ratio == 5),
        "dead_columns": 3 if gptq else 0, "layers_skipped": 0, "weights_sha": f"{run}{ratio}",
        "key": f"v1-{run}-{ratio}-{quantizer}-{bits}", "quantizer_version": "1" if bits else "",
        "delta_df": 32 if bits else math.nan, "effective_windows": 70.0 if bits else math.nan,
        "documents": 9 if bits else math.nan, "covers": "text" if bits else "",
        "over_rounding": math.nan, "over_rounding_se": math.nan,
        "rounding_sd": se / 2 if bits else math.nan, "numerics_sd": 0.0 if bits else math.nan,
        "noise_floor": se if bits else math.nan,
        "calibration_draws": 1 if bits else math.nan, "calibration_sd": math.nan, "covers_calibration": False,
        "format": "int" if bits else "", "effective_bits": bits + 0.125 if bits else math.nan,
        "gaussian_mse": 2.7 * 4.0**-bits if bits else math.nan,
        "calibration_se": math.nan, "calibration_df": math.nan, "seeds": math.nan, "seed_sd": math.nan,
        "calib_text": "calib" if bits else None, "calib_windows": 128 if bits else math.nan,
        "calib_length": 64 if bits else math.nan, "calib_seed": "0" if bits else None,
        "calib_first": True if bits else None, "calib_difference": math.nan, "calib_difference_se": math.nan,
        "calib_difference_df": math.nan, "second_order_ratio": 1.1 if bits else math.nan, "doubts": None,
        **dict.fromkeys(RUNTIME),
        "kl_median": abs(got) / 2, "kl_p99": 5 * abs(got), "kl_p999": 9 * abs(got), "kl_max": 20 * abs(got),
        "delta_p": -true / 10, "delta_p_se": se / 10, "delta_p_rms": true / 4, "delta_p_rms_se": se / 8,
        "delta_p_p1": -0.9 * true, "delta_p_p5": -0.4 * true, "delta_p_p95": 0.3 * true, "delta_p_p99": 0.7 * true,
        "loss_correlation": math.exp(-true / 9),
    }  # fmt: skip
    return {name: values[name] for name in COLUMNS}


def make_table(runs=tuple(RUNS), ratios=RATIOS, quantizers=tuple(QUANTIZERS), bits=BITS, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for run in runs:
        for ratio in ratios:
            rows.append(_row(run, ratio, "none", None, rng))
            first = rows[-1]
            for quantizer in quantizers:
                for width in bits:
                    row = _row(run, ratio, quantizer, width, rng)
                    row["loss_fp"], row["ppl_fp"] = first["loss_fp"], first["ppl_fp"]
                    row["loss_q"] = row["loss_fp"] + row["delta"]
                    row["ppl_q"] = math.exp(row["loss_q"])
                    rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def _estimate(value, spread=0.15):
    return {"value": value, "low": value * (1 - spread), "high": value * (1 + spread)}


def _fit(quantizer, law, parameters, table):
    rows = table[table["quantizer"] == quantizer]
    return {
        **_configuration(quantizer), "law": law, "runs": sorted(set(rows["run"])),
        "parameters": {name: _estimate(value) for name, value in parameters.items()},
        "objective": 31.4159, "loss": "huber", "r2": 0.981, "r2_log": 0.97, "r2_weighted": 0.9,
        "scatter": 0.12, "least_scatter": False,
        "by_bits": [{"bits": 2.0, "n_points": 9, "r2": 0.9, "r2_weighted": 0.8, "scatter": 0.1}], "n_points": len(rows),
        "n_runs": rows["run"].nunique(), "n_dropped": 0, "status_kind": "ok", "at_bound": [], "reason": None,
        "covers": {
            "level": 0.9, "method": "bootstrap", "n_runs": 2, "n_clusters": 20, "covers_runs": False,
            "noise": "windows", "n_windows": 64,
        },
    }  # fmt: skip


def _configuration(quantizer):
    if quantizer == "none":
        return {"quantizer": "none", "options": "", "group_size": None, "symmetric": None, "calibration": ""}
    calibration = "sequential" if quantizer == "gptq" else "shared"
    return {
        "quantizer": quantizer, "options": "{}", "group_size": 16, "symmetric": False, "calibration": calibration
    }  # fmt: skip


def _verdict(interior, factor):
    reason = None
    if not interior and factor > 100:
        reason = {"kind": "too_far", "factor": factor}
    kind = "observed" if interior else "not_identified" if reason else "predicted"
    return {"verdict_kind": kind, "reason": reason}


def _answer(interior, seen, value, factor):
    if interior:
        return {"low": seen * 0.6, "value": seen, "high": seen * 1.6, "level": 0.9}
    return None if factor > 100 else {"low": value / 1.6, "value": value, "high": value * 1.9, "level": 0.9}


def _critical(run, quantizer, bits, table):
    n, largest = RUNS[run], table.loc[table["run"] == run, "tokens"].max()
    value = critical(quantizer, n, bits)
    rows = table[(table["run"] == run) & (table["quantizer"] == quantizer) & (table["bits"] == bits)]
    best = rows.loc[rows["loss_q"].idxmin()]
    interior = bool(best["tokens"] not in (rows["tokens"].min(), rows["tokens"].max()))
    seen = float(best["tokens"])
    rise = float(rows.sort_values("tokens")["loss_q"].iloc[-1] - best["loss_q"])
    return {
        **_configuration(quantizer), "run": run, "params": n, "bits": bits,
        "predicted": {"value": value, "low": value / 1.6, "high": value * 1.9},
        "extrapolation_factor": value / largest, "observed_tokens": seen,
        "observed": {"value": seen, "low": seen * 0.6, "high": seen * 1.6 if interior else None},
        "interior": interior, "rise": rise, "rise_se": 0.006, **_verdict(interior, value / largest),
        "answer": _answer(interior, seen, value, value / largest),
    }  # fmt: skip


def make_fit(table):
    runs, bits = list(dict.fromkeys(table["run"])), sorted(table["bits"].dropna().astype(int).unique())
    quantizers = [q for q in QUANTIZERS if (table["quantizer"] == q).any()]
    fits = [_fit("none", "chinchilla", BASE, table)]
    for quantizer in quantizers:
        factor, gamma_post = QUANTIZERS[quantizer]
        theta = {"C_T": factor, "gamma_D": GAMMA_D, "gamma_N": GAMMA_N, "gamma_post": gamma_post}
        fits.append(_fit(quantizer, "kumar_ptq", theta, table))
    critical_tokens = [_critical(r, q, int(b), table) for r in runs for q in quantizers for b in bits]
    cautions = [{"kind": "few_runs", "runs": 2, "needed": 10}]
    return with_texts({"fits": fits, "critical_tokens": critical_tokens, "cautions": cautions})


def make_run(table):
    models = {
        run: {
            "quantized": [f"model.layers.{i}.self_attn.q_proj" for i in range(3)],
            "excluded": [
                {"name": "model.embed_tokens", "reason": "embedding", "params": 49_152},
                {"name": "lm_head", "reason": "output head", "params": 49_152},
            ],
            "share_quantized": 0.6,
            "params_quantized": int(0.994 * RUNS.get(run, 1)),
            "counts": {"total": RUNS.get(run, 1) + 49_152, "non_embedding": RUNS.get(run, 1)},
        }
        for run in dict.fromkeys(table["run"])
    }
    return {
        "options": {"quantizers": ["rtn", "gptq", "awq"], "bits": [2, 3, 4, 8], "group_size": 16, "seed": 0},
        "versions": {"python": "3.11.2", "torch": "2.13.0", "ptq_eval": "0.1.0"},
        "digests": {"eval": "sha256:" + "ab" * 16, "calib": "sha256:" + "cd" * 16},
        "git": {"commit": "0123abcd", "dirty": False},
        "machine": {"cpu": "a CPU", "cores": 2, "gpu": None},
        "models": models,
        "notes": ["The text is the standard library of Python 3.11."],
        "overlap": {"share": 0.0, "checked": "13-grams"},
        "seconds": 123.4,
    }
