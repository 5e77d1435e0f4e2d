"""What `--precision 0.02` saves, and whether δ stays where all windows put it.

The largest checkpoint of the embedded trajectory, RTN, GPTQ and AWQ at four bit-widths, measured twice by the whole
command: on 3,072 windows of the embedded evaluation text, and with the early stop.  A window evaluation is one window
under one quantized variant; full precision sees every window either way and is counted as well.  The two δ are compared
in standard errors of the shorter measurement.  A variant whose δ is near zero is ended by the rule's absolute floor or
never.
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Any

import ptq_eval
from benchmarks.harness import Claim, Outcome, Setup
from benchmarks.subjects import demo_options, last_of_each_run
from ptq_eval.results.store import Store

PRECISION = 0.02
WINDOWS = 3072  # of the 3,201 of the embedded evaluation text
FEWER, ERRORS = 4.0, 2.0


def measure(setup: Setup) -> Outcome:
    """Both measurements, variant by variant."""
    checkpoint = last_of_each_run(setup.trajectory)[-1]
    options = {**demo_options(), "eval_windows": 192 if setup.quick else WINDOWS}
    everything, seconds_all = _run(checkpoint.location, options)
    early, seconds_early = _run(checkpoint.location, {**options, "precision": PRECISION})
    rows = [_row(key, everything[key], early[key]) for key in everything]
    total, seen = sum(row[2] for row in rows), sum(row[3] for row in rows)
    full = max(row[2] for row in rows)
    gaps = [row[6] for row in rows if math.isfinite(row[6])]
    outcome = Outcome()
    outcome.claims = [
        Claim(
            f"early stop at {PRECISION}: window evaluations of {len(rows)} variants, all windows / windows seen",
            total / seen,
            min(row[2] / row[3] for row in rows),
            max(row[2] / row[3] for row in rows),
            FEWER,
            "at least",
        ),
        Claim(
            "the same, full precision counted on both sides",
            (total + full) / (seen + full),
            *[(total + full) / (seen + full)] * 2,
        ),
        Claim(
            f"early stop at {PRECISION}: distance of δ from δ of all windows, in standard errors, largest variant",
            max(gaps),
            min(gaps),
            max(gaps),
            ERRORS,
        ),
        Claim("early stop: whole sweep, seconds with all windows / with the stop", *[seconds_all / seconds_early] * 3),
    ]
    outcome.details = {
        f"{checkpoint.name}, {full} windows": {
            "columns": ["method", "bits", "windows", "seen", "δ, all", "δ, early", "distance / s.e.", "s.e. / δ"],
            "rows": rows,
        },
        "seconds": {"all": seconds_all, "early": seconds_early},
    }
    return outcome


def _run(location: str, options: dict[str, Any]) -> tuple[dict[tuple[str, int], dict[str, Any]], float]:
    """{(quantizer, bits): row of the table, with the windows seen}, and the seconds of the whole run."""
    with tempfile.TemporaryDirectory() as folder:
        out, started = Path(folder) / "run", time.perf_counter()
        table = ptq_eval.run(location, out, write_report=False, **options).table
        seconds = time.perf_counter() - started
        seen = {
            (m.trial.quantizer, m.trial.scheme.bits): len(m.nll)
            for m in Store(out).measurements()
            if m.trial.scheme is not None
        }
    rows = {(row["quantizer"], row["bits"]): row for row in table.to_dict("records")}
    return {key: {**row, "windows_seen": seen[key]} for key, row in rows.items() if key in seen}, seconds


def _row(key: tuple[str, int], full: dict[str, Any], early: dict[str, Any]) -> list[Any]:
    error = float(early["delta_se"])
    return [
        *key,
        full["windows_seen"],
        early["windows_seen"],
        float(full["delta"]),
        float(early["delta"]),
        abs(float(early["delta"]) - float(full["delta"])) / error if error else math.nan,
        error / abs(float(early["delta"])),
    ]
