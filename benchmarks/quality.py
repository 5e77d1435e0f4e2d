"""The loss that every package's RTN, GPTQ and AWQ leaves behind, on a model that quantization damages.

The subject is the last checkpoint of the embedded trajectory, trained on a thousand tokens a parameter: at 2 bits it
loses nine tenths of a nat, at 4 bits two hundredths.  A barely trained model, such as `methods` and `grid` take their
times on, loses almost nothing to any method, and a comparison of losses on it cannot fail.

Every package quantizes the same checkpoint with the same windows, bit-widths, group size and kind of grid.  The dense
weights that its layers multiply by are evaluated by our evaluator on one set of windows; ours are measured by a sweep.
Differences are paired by window: a method's luck with the text cancels, and the standard error is over windows.  It
says nothing of the luck of a calibration sample, so all is repeated with other calibration windows, and the range over
these draws is reported beside each ratio.  Ours is held against the best package of each draw, which may be another one
each time: the strictest reading, as the least of several equal estimates is below their mean.

Packages share neither one "symmetric" grid nor one default.  Like is held against like (`rivals`): AWQ that searches a
clipped range against GPTQModel and neural-compressor, which do so, AWQ with scales alone against the others; GPTQ that
takes columns by activity against llm-compressor and GPTQModel, GPTQ in the order of the columns against the others; on
symmetric grids only packages that mean the same grid count.  Whose grid is ours is measured, by rounding to nearest.
The tables have every side against our defaults.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from benchmarks.harness import Claim, Outcome, Setup, claim_of
from benchmarks.methods import losses_of
from benchmarks.peers.environments import QUANTIZING
from benchmarks.peers.jobs import OURS, Cell, run_driver
from benchmarks.peers.parts import linear_names
from benchmarks.report import LEFT_OUT
from benchmarks.subjects import bare_model, last_of_each_run, prepared
from ptq_eval.measure.sweep import sweep
from ptq_eval.measure.trials import Workload
from ptq_eval.records import Checkpoint
from quantizers import Scheme, get_quantizer

BITS, GROUP, LENGTH, METHODS = (2, 3, 4, 8), 16, 128, ("rtn", "gptq", "awq")
DRAWS, WINDOWS, CALIBRATION, LIMIT = 2, 1024, 64, 1.005
VARIANTS: dict[str, dict[str, Any]] = {
    OURS: {},
    "ours, shared calibration": {"quantizers": ("gptq",), "calibration": "shared"},
    "ours, by activity": {"quantizers": ("gptq",), "options": {"gptq": {"act_order": True, "static_groups": True}}},
    "ours, clipping": {"quantizers": ("awq",), "options": {"awq": {"clip": True}}},
}
BY_ACTIVITY = {"gptqmodel", "llm-compressor"}
"""Packages whose GPTQ orders columns by activity by default."""

CLIPPING = {"gptqmodel", "neural-compressor"}
OTHER_SYMMETRIC_GRID = {"auto-round", "modelopt", "neural-compressor"}

NOTES = {
    "rtn": "Symmetric grids differ, see the last table: ModelOpt's and neural-compressor's leave one value out; "
    "auto-round's gives a scale a sign, so the largest weight is exact.",
    "gptq": "llm-compressor takes columns by activity with the scales of the original groups, as 'ours, by activity' "
    "does; GPTQModel orders groups so, and columns within them. The symmetric grids are those of rounding to nearest.",
    "awq": "Ours searches scales alone by default; GPTQModel and neural-compressor search a clipped range too, as "
    "'ours, clipping' does. GPTQModel also divides the scales by a mean of the weights, and runs in bfloat16.",
}

COLUMNS = ["bits", "side", "δ", "ours − side", "s.e. over windows", "range over draws", "perplexity, ours / side"]

Key = tuple[str, bool, int]
"""(method, whether the grid is symmetric, bits)."""

Losses = dict[Key, dict[str, list[np.ndarray]]]
"""Side: loss per token of every window [windows], one array a draw."""


def measure(setup: Setup) -> Outcome:
    """All packages that can be installed, and the variants of ours, for every draw of calibration windows."""
    checkpoint = last_of_each_run(setup.trajectory)[-1]
    sizes = {"eval_windows": 32 if setup.quick else WINDOWS, "calib_windows": 4 if setup.quick else CALIBRATION}
    losses: Losses = {}
    grids: list[list[Any]] = []
    problems: list[str] = []
    full = np.empty(0)
    for draw in range(1 if setup.quick else DRAWS):
        with tempfile.TemporaryDirectory() as name:
            full = measure_ours(losses, checkpoint, Path(name), calib_seed=draw, **sizes)
            problems += _measure_theirs(
                losses, grids, checkpoint, Path(name), first=draw == 0, calib_seed=draw, **sizes
            )
    outcome = Outcome(list(claims_of(losses)), figures={"quality.png": _figure(losses, float(full.mean()))})
    note = f"{checkpoint.name}, {checkpoint.tokens_per_param:.0f} tokens a parameter, perplexity "
    note += f"{math.exp(full.mean()):.3f} in full precision; groups of {GROUP}, {sizes['calib_windows']} calibration "
    note += f"windows and {len(full)} evaluation windows of {LENGTH} tokens. "
    for method in METHODS:
        for symmetric in (False, True):
            rows = [row for key in losses if key[:2] == (method, symmetric) for row in rows_of(losses[key], key, full)]
            outcome.details[_name(method, symmetric)] = {"note": note + NOTES[method], "columns": COLUMNS, "rows": rows}
            note = ""
    outcome.details["rounding to nearest at 2 bits"] = {
        "note": "Which grid a package means: the most values that a group takes, and the distance of all rounded "
        "weights from ours, relative to their norm.",
        "columns": ["grid", "package", "values", "distance"],
        "rows": grids,
    }
    outcome.details["losses"] = {
        f"{_name(*key[:2])}, {key[2]} bits": {side: [float(nll.mean()) for nll in draws] for side, draws in by.items()}
        for key, by in losses.items()
    }
    if problems:
        outcome.details[LEFT_OUT] = list(dict.fromkeys(problems))
    return outcome


def _name(method: str, symmetric: bool) -> str:
    return f"{method}, {'symmetric' if symmetric else 'asymmetric'}"


def _prepared(checkpoint: Checkpoint, folder: Path, **options: Any) -> tuple[Workload, Path]:
    return prepared(checkpoint, folder, bits=BITS, group_size=GROUP, seq_len=LENGTH, **options)


def measure_ours(losses: Losses, checkpoint: Checkpoint, folder: Path, **options: Any) -> np.ndarray:
    """Add this package's losses, as a sweep measures them; the losses in full precision [windows]."""
    full = np.empty(0)
    for symmetric in (False, True):
        for side, also in VARIANTS.items():
            work, _ = _prepared(checkpoint, folder, symmetric=symmetric, **options, **also)
            for measured in sweep(work, work.trials, tick=lambda _: None):
                nll, scheme = np.divide(measured.nll, measured.n_tokens), measured.trial.scheme
                if scheme is None:
                    full = nll
                else:
                    key = (measured.trial.quantizer, symmetric, scheme.bits)
                    losses.setdefault(key, {}).setdefault(side, []).append(nll)
    return full


def _measure_theirs(
    losses: Losses, grids: list[list[Any]], checkpoint: Checkpoint, folder: Path, first: bool, **options: Any
) -> list[str]:
    """Add the other packages' losses; what is left out, and why.  Rounding, which needs no windows, is `first` only."""
    work, calibration = _prepared(checkpoint, folder, **options)
    methods = METHODS if first else METHODS[1:]
    keys = [(method, symmetric, bits) for method in methods for symmetric in (False, True) for bits in BITS]
    weights: dict[str, tuple[str, Key]] = {}
    problems = []
    for side in QUANTIZING:
        cells = [Cell(m, b, GROUP, s, str(folder / f"{side}-{m}-{s}-{b}.safetensors")) for m, s, b in keys]
        result = run_driver(side, work.folder, calibration, cells, threads=int(os.environ.get("OMP_NUM_THREADS", "1")))
        if result is None:
            problems.append(f"{side}: no environment, or its driver fails")
            continue
        for cell in result["cells"]:
            key = (cell["method"], cell["symmetric"], cell["bits"])
            if "error" in cell:
                problems.append(f"{side}, {_name(*key[:2])}: {cell['error']}")
            else:
                weights[cell["weights"]] = (side, key)
    uniform = math.log(bare_model(work.folder).config.vocab_size)
    for path, nll in losses_of(work, weights)[1].items():
        side, key = weights[path]
        if sum(nll) / len(nll) > uniform:
            problems.append(f"{side}, {_name(*key[:2])}: its layers do worse than equal odds for all tokens")
            continue
        losses[key].setdefault(side, []).append(np.array(nll))
        if key[0] == "rtn" and key[2] == BITS[0]:
            grids.append([_name(*key[:2]), side, *_grid(work.folder, path, key)])
    return problems


def _grid(model: Path, path: str, key: Key) -> tuple[int, float]:
    """The most values that a group of the weights in the file `path` takes, and how far they are from ours."""
    state, theirs = bare_model(model).state_dict(), load_file(path)
    most, off, norm = 0, 0.0, 0.0
    for layer in linear_names(str(model)):
        weight = theirs[f"{layer}.weight"]
        ours = get_quantizer("rtn").quantize(state[f"{layer}.weight"], Scheme(key[2], GROUP, key[1])).dequantize()
        groups = weight.reshape(-1, GROUP).sort(-1).values
        steps = groups.diff(dim=-1) > 1e-3 * groups.abs().amax(-1, keepdim=True)  # more than the kernels' rounding
        most = max(most, 1 + int(steps.sum(-1).max()))
        off, norm = off + float((weight - ours).square().sum()), norm + float(ours.square().sum())
    return most, math.sqrt(off / norm)


def rivals(variant: str, method: str, symmetric: bool) -> list[str]:
    """The packages that a variant of ours is held against: those that do the same on the same grid."""
    sides = [side for side in QUANTIZING if not (symmetric and side in OTHER_SYMMETRIC_GRID)]
    if method == "rtn":
        return sides
    packages, own = (CLIPPING, "ours, clipping") if method == "awq" else (BY_ACTIVITY, "ours, by activity")
    return [side for side in sides if (side in packages) == (variant == own)]


def claims_of(losses: Losses) -> Iterator[Claim]:
    """Our perplexity over the best package's of its kind, draw by draw: the median of the draws."""
    for (method, symmetric, bits), by in losses.items():
        for variant in VARIANTS:
            theirs = [by[side] for side in rivals(variant, method, symmetric) if side in by]
            if variant in by and theirs:
                pairs = zip(by[variant], zip(*theirs))
                ratios = [math.exp(own.mean() - min(nll.mean() for nll in others)) for own, others in pairs]
                what = f"quality: {_name(method, symmetric)}, {bits} bits, perplexity, {variant} / the best of its kind"
                yield claim_of(what, ratios, limit=LIMIT)


def rows_of(by: dict[str, list[np.ndarray]], key: Key, full: np.ndarray) -> Iterator[list[Any]]:
    """A line for every side of one cell, compared with our defaults; `full` [windows] is full precision."""
    for side, draws in by.items():
        row = [key[2], side, float(np.mean(draws) - full.mean())]
        if side == OURS:
            yield [*row, None, None, None, None]
            continue
        gaps = np.array([own - other for own, other in zip(by[OURS], draws)])
        error = gaps.mean(0).std(ddof=1) / math.sqrt(gaps.shape[1])
        mean = gaps.mean(1)
        spread = f"{mean.min():+.4f} – {mean.max():+.4f}" if len(gaps) > 1 else None
        yield [*row, float(gaps.mean()), float(error), spread, math.exp(gaps.mean())]


def _figure(losses: Losses, full: float) -> Any:
    """δ of every side over our defaults', by bit-width; whiskers are two standard errors over windows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6.5), layout="constrained")
    sides = list(dict.fromkeys(side for by in losses.values() for side in by if side != OURS))
    shown = [bits for bits in BITS if bits < 8]  # at 8 bits there is no damage to compare
    for row, symmetric in zip(figure.subplots(2, len(METHODS), sharex=True), (False, True)):
        for axes, method in zip(row, METHODS):
            for place, side in enumerate(sides):
                points = []
                for at, bits in enumerate(shown):
                    by = losses[method, symmetric, bits]
                    if side in by:
                        own = float(np.mean(by[OURS])) - full
                        gaps = np.mean([b - a for a, b in zip(by[OURS], by[side])], axis=0)
                        x = at + 0.7 * (place / max(1, len(sides) - 1) - 0.5)
                        points.append((x, 1 + gaps.mean() / own, 2 * gaps.std(ddof=1) / math.sqrt(len(gaps)) / own))
                if points:
                    style = "D" if side in VARIANTS else "o"
                    axes.errorbar(*zip(*points), fmt=style, ms=5, color=f"C{place}", label=side)
            axes.axhline(1, color="black", lw=1)
            axes.set(title=_name(method, symmetric), yscale="log", xticks=range(len(shown)), xticklabels=shown)
            axes.set(xlabel="bits", ylabel="δ / δ of ours")
            axes.yaxis.set(major_formatter="{x:g}", minor_formatter="{x:g}")
            axes.spines[["top", "right"]].set_visible(False)
    handles = {h.get_label(): h for axes in figure.axes for h in axes.get_legend_handles_labels()[0]}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False)
    return figure
