"""Output folders with records that are made up: losses per window under control, no model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from ptq_eval.records import CalibrationDraw, Checkpoint, Measurement, Sample, Scheme, Trial

WINDOWS, TOKENS = 60, 32
DAMAGE = {2: 0.5, 3: 0.1, 4: 0.02, 8: 0.001}


def checkpoint(step=100, run="tiny", weights="aa"):
    return Checkpoint(run, step, step * 4096, 1000, weights_sha=f"{weights}{step}", tokens_source="explicit")


def trial(one, quantizer="none", bits=None, draw=0, **changes):
    calibrated = quantizer not in ("none", "rtn")
    return replace(
        Trial(
            one,
            "corpus",
            f"text-{TOKENS}",
            quantizer,
            "1",
            {},
            Scheme(bits, 16) if bits else None,
            "shared" if calibrated else "",
            f"calibration{draw}" if calibrated else "",
            sample=Sample("spread", 10 * WINDOWS),
            calibration_draw=CalibrationDraw("text", 4, TOKENS, draw) if calibrated else None,
        ),
        **changes,
    )


def grid(steps=(100, 200), quantizers=("rtn", "gptq"), bits=(2, 3, 4), draws=1, seed=0, rounding=1e-4, **changes):
    """Measurements of a grid: every loss is that in full precision plus damage that differs from window to window."""
    found = []
    for step in steps:
        rng = np.random.default_rng([seed, step])
        full = 3 + rng.normal(0, 0.5, WINDOWS)
        one = checkpoint(step)
        count = (TOKENS,) * WINDOWS
        numerics = {"numerics": 0.0, "second_order": 0.0}
        found.append(Measurement(trial(one, **changes), tuple(TOKENS * full), count, count, details=numerics))
        for quantizer in quantizers:
            for width in bits:
                for draw in range(draws if quantizer != "rtn" else 1):
                    loss = full + DAMAGE[width] * (1 + 0.3 * rng.normal(size=WINDOWS))
                    divergence = (0.0,) * WINDOWS
                    found.append(
                        Measurement(
                            trial(one, quantizer, width, draw, **changes),
                            tuple(TOKENS * loss),
                            count,
                            count,
                            divergence,
                            count,
                            bits_per_weight=float(width),
                            details={"rounding": rounding},
                        )
                    )
    return found


def moved(found, by, **which):
    """The same measurements, some with other losses: `by(losses per token [windows])`, or a number that is added."""
    return [_moved(m, by) if _is(m, which) else m for m in found]


def _is(m, which):
    about = {"quantizer": m.trial.quantizer, "bits": m.trial.bits, "step": m.trial.checkpoint.step}
    return m.trial.scheme is not None and all(about[name] == value for name, value in which.items())


def _moved(m, by):
    losses = np.array(m.nll) / TOKENS
    return replace(m, nll=tuple((TOKENS * (by(losses) if callable(by) else losses + by)).tolist()))


def noise(size, seed=1):
    """A change of each window's loss by chance, whose mean over all windows is zero."""

    def change(losses):
        gaps = np.random.default_rng([seed, len(losses)]).normal(0, size, len(losses))
        return losses + gaps - gaps.mean()

    return change


def write(folder, found, run=None):
    """An output folder of these measurements."""
    folder = Path(folder)
    (folder / "records").mkdir(parents=True)
    checkpoints = {m.trial.checkpoint.name: m.trial.checkpoint for m in found}
    info = {
        "checkpoints": [one.to_dict() for one in checkpoints.values()],
        "fixed": {},
        "quantizer_options": {},
        "digests": {},
        "options": {},
        "versions": {"ptq-eval": "0.1.0"},
        **(run or {}),
    }
    (folder / "run.json").write_text(json.dumps(info), encoding="utf-8")
    lines = "".join(json.dumps(m.to_dict()) + "\n" for m in found)
    (folder / "records" / "worker-1-of-1.jsonl").write_text(lines, encoding="utf-8")
    return folder
