"""Our quantizers beside those of every package that runs here: one grid, calibration and set of windows for all.

    python results/quantizers/beside_packages.py WORK [--stage train|measure|report|all] [--model NAME]

Two models: the last checkpoint of the embedded trajectory (N = 160,192), and a Llama of 5.2 million parameters that is
trained on `stdlib:train` by the stage `train`.  WORK takes its weights, and the records of all measurements; the table
and the figure are written beside this file.  An interrupted stage goes on when repeated.  Methods of a backend that is
not installed (`ptq-eval backends install NAME`) are failed records, and absent from the table.

Integers at 2, 3 and 4 bits, asymmetric, in groups of 32.  A method is measured with three draws of the calibration
windows, the same three for all.  A difference of two methods is paired by window and by draw.  Its standard error has
two parts: evaluation windows, and the draw.  Three draws say little of a variance, so those of all pairs of a model are
shrunk towards their common size in proportion to the KL divergence (`ptq_eval.results.draws.shrunk`).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

import ptq_eval
from ptq_eval import corpora
from ptq_eval.pretrain import PretrainConfig, pretrain
from ptq_eval.records import FULL_PRECISION, Measurement
from ptq_eval.report.common import figures
from ptq_eval.results.draws import shrunk
from ptq_eval.results.store import Store
from ptq_eval.sampling import Design, design_of, standard_error

HERE = Path(__file__).resolve().parent
EMBEDDED = HERE.parents[1] / "examples" / "trajectory" / "llama-160k"
BITS, GROUP, DRAWS = (2, 3, 4), 32, 3
TRAINED = PretrainConfig(
    width=256,
    layers=7,
    context=256,
    batch_size=16,
    learning_rate=2e-3,
    ratios=(0.1, 0.2, 0.4, 0.7, 1, 1.5, 2),
)
WINDOWS = {"llama-160k": 1024, "llama-5m": 128}
TOO_SLOW = {"llama-5m": ("auto-round:signround", "signround")}
"""Sides that are not measured: at 5 million parameters auto-round takes some four minutes of a core for each block, and
there are 63, of seven blocks, three bit-widths and three draws; so ours has nothing to be compared with."""

FAMILIES: dict[str, tuple[str, ...]] = {
    "rounding": ("llmcompressor:rtn", "gptqmodel:rtn", "auto-round:rtn", "neural-compressor:rtn", "torchao:intx"),
    "GPTQ": ("llmcompressor:gptq", "gptqmodel:gptq", "neural-compressor:gptq"),
    "AWQ": ("llmcompressor:awq", "gptqmodel:awq", "neural-compressor:awq"),
    "HQQ": ("hqq:hqq", "torchao:hqq"),
    "SignRound": ("auto-round:signround",),
    "GPTAQ": ("gptqmodel:gptaq",),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "gptq by activity": {"quantizers": ("gptq",), "options": {"gptq": {"act_order": True, "static_groups": True}}},
    "awq with clipping": {"quantizers": ("awq",), "options": {"awq": {"clip": True}}},
    "awq relative": {"quantizers": ("awq",), "options": {"awq": {"relative": True}}},
    "awq sequential": {"quantizers": ("awq",), "calibration": "sequential"},
    "hqq": {"quantizers": ("hqq",)},
    "signround": {"quantizers": ("signround",)},
    "gptaq": {"quantizers": ("gptaq",)},
    "qronos": {"quantizers": ("qronos",)},
    "gptq noclip": {"quantizers": ("gptq-noclip",)},
    "hadamard gptq": {"quantizers": ("hadamard-gptq",)},
}
"""Ours with options of their own, in output folders of their own."""

FAMILY_OF = {
    "rtn": "rounding",
    "gptq": "GPTQ",
    "gptq by activity": "GPTQ",
    "awq": "AWQ",
    "awq with clipping": "AWQ",
    "awq relative": "AWQ",
    "awq sequential": "AWQ",
    "hqq": "HQQ",
    "signround": "SignRound",
    "gptaq": "GPTAQ",
} | {side: family for family, sides in FAMILIES.items() for side in sides}
OTHERS = "bitsandbytes:nf4"
"""Methods without a counterpart here, or on a grid of their own: drawn, not judged."""


Draws = dict[str, np.ndarray]
"""Loss per token of every window [windows] by the digest of the calibration windows; one entry without calibration."""


@dataclass(frozen=True)
class Side:
    """What was measured of one method at one number of bits."""

    name: str
    bits: int
    draws: Draws
    kl: float
    bytes: float
    delta: float
    floor: float


def train(work: Path, threads: int | None) -> None:
    """The larger model, its checkpoints below `work`."""
    if threads:
        import torch

        torch.set_num_threads(threads)
    text = corpora.read("stdlib:train").text
    assert text is not None
    pretrain(TRAINED, text, work / "llama-5m", device="cpu")


def measure(work: Path, model: str, checkpoint: Path, only: str | None) -> None:
    """Measure every side of one model, or `only` one output folder of them."""
    together = ("rtn", "gptq", "awq", *(side for sides in FAMILIES.values() for side in sides), OTHERS)
    together = tuple(side for side in together if side not in TOO_SLOW.get(model, ()))
    for name, options in {"all": {"quantizers": together}, **VARIANTS}.items():
        if only not in (None, name) or name in TOO_SLOW.get(model, ()):
            continue
        for side in options["quantizers"]:  # one at a time: what is measured is stored
            ptq_eval.run(
                checkpoint,
                work / "measured" / model / name.replace(" ", "-"),
                **{**options, "quantizers": (side,)},
                bits=BITS,
                group_size=GROUP,
                calib_repeats=DRAWS,
                calib_windows=64,
                eval_windows=WINDOWS[model],
                write_report=False,
                bootstrap=10,
            )
            print(f"{model}: {name}, {side}", flush=True)
        print(model, name, flush=True)


def sides_of(folder: Path) -> tuple[list[Side], Design]:
    """Every method and bit-width below `folder` that was measured with all its draws, and the design of the windows."""
    found, design = [], None
    for path in sorted(folder.iterdir()):
        measurements = [m for m in Store(path).measurements() if m.status == "ok"]
        before = next(m for m in measurements if m.trial.quantizer == FULL_PRECISION)
        design = design_of(before.trial.sample, len(before.nll))
        frame = ptq_eval.load(path, bootstrap=10).table
        floors = {(r["quantizer"], r["bits"], r["format"]): r["noise_floor"] for r in records(frame)}
        cells: dict[tuple[str, int, str], list[Measurement]] = {}
        for m in measurements:
            if m.trial.scheme is not None:
                cells.setdefault((m.trial.quantizer, m.trial.scheme.bits, m.trial.scheme.format), []).append(m)
        for (quantizer, bits, form), draws in cells.items():
            losses = {m.trial.calibration_corpus: np.array(m.nll) / np.array(m.n_tokens) for m in draws}
            mean = float(np.mean([m.loss for m in draws]))
            found.append(
                Side(
                    name=path.name.replace("-", " ") if path.name != "all" else quantizer,
                    bits=bits,
                    draws=losses,
                    kl=float(np.mean([sum(m.kl) / sum(m.n_tokens) for m in draws])),
                    bytes=float(draws[0].bits_per_weight or math.nan)
                    * (before.trial.checkpoint.params_quantized or 0)
                    / 8,
                    delta=mean - before.loss,
                    floor=floors.get((quantizer, bits, form), math.nan),
                )
            )
    assert design is not None
    return found, design


def differences(pairs: Iterable[tuple[Side, Side]], design: Design) -> list[tuple[float, float]]:
    """Mean and standard error of the loss of the first side minus that of the second, nats per token, of every pair."""
    means, sampling, variances, scales = [], [], [], []
    for one, other in pairs:
        shared = sorted(set(one.draws) & set(other.draws)) or sorted(set(one.draws) | set(other.draws))
        each = np.array([_loss(one, draw) - _loss(other, draw) for draw in shared if draw])
        each = each if len(each) else np.array([_loss(one, "") - _loss(other, "")])
        means.append(float(each.mean()))
        sampling.append(standard_error(each.mean(axis=0), design))
        variances.append(float(each.mean(axis=1).var(ddof=1)) if len(each) > 1 else 0.0)
        scales.append(one.kl + other.kl)
    drawn = shrunk(np.array(variances), DRAWS - 1, np.array(scales))[0] / DRAWS
    return [(mean, math.hypot(error, math.sqrt(var))) for mean, error, var in zip(means, sampling, drawn)]


def _loss(side: Side, draw: str) -> np.ndarray:
    return side.draws[draw] if draw in side.draws else next(iter(side.draws.values()))


def compared(sides: list[Side], design: Design, model: str) -> pd.DataFrame:
    """A row per method and bit-width: δ and the difference to the best other package's method of its family."""
    pairs, rows = [], []
    for side in sides:
        family, outside = FAMILY_OF.get(side.name, ""), ":" in side.name
        rivals = [s for s in sides if s.bits == side.bits and FAMILY_OF.get(s.name) == family and ":" in s.name]
        best = min(rivals, key=lambda s: s.delta, default=None) if family and not outside else None
        rows.append(
            {
                "model": model,
                "bits": side.bits,
                "family": family,
                "method": side.name,
                "bytes": side.bytes,
                "draws": len(side.draws),
                "delta": side.delta,
                "noise_floor": side.floor,
                "best": best.name if best else "",
            }
        )
        if best:
            pairs.append((side, best))
    found = iter(differences(pairs, design))
    for row in rows:
        row["over_best"], row["over_best_se"] = next(found) if row["best"] else (math.nan, math.nan)
    return pd.DataFrame(rows).sort_values(["model", "bits", "family", "delta"], ignore_index=True)


def records(table: Any) -> list[dict[str, Any]]:
    """The rows of a table."""
    return [dict(zip(table.columns, row)) for row in table.itertuples(index=False)]


COLOURS = {
    "rounding": "#7F7F7F",
    "GPTQ": "#0072B2",
    "AWQ": "#D55E00",
    "HQQ": "#009E73",
    "SignRound": "#E69F00",
    "GPTAQ": "#56B4E9",
    "": "#CC79A7",
}
OTHER_FAMILY = "other formats and methods"
APART = 0.011
"""Methods of one size would cover each other: each family is drawn this share of the bytes beside the one before."""


def drawn(table: pd.DataFrame) -> Any:
    """δ against the bytes of the quantized matrices, a panel per model: ours filled, others hollow, families side by
    side, and the median noise floor of the methods of a size as a band."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter

    models = list(dict.fromkeys(table["model"]))
    figure, axes = figures.panels(1, len(models))
    for panel, model in zip(axes[0], models):
        own = table[table["model"] == model]
        for row in records(own):
            colour, ours = COLOURS[row["family"]], ":" not in row["method"]
            aside = 1 + APART * (list(COLOURS).index(row["family"]) - len(COLOURS) // 2)
            fill = colour if ours else "none"
            panel.plot(row["bytes"] * aside, row["delta"], "o", ms=4.5, color=colour, mfc=fill, alpha=0.8)
        for _, width in own.groupby("bits"):  # a step per bit-width: the median floor of its methods
            ends = [width["bytes"].min() * 0.95, width["bytes"].max() * 1.05]
            panel.fill_between(ends, 1e-9, float(np.nanmedian(width["noise_floor"])), color="#dddddd", lw=0, zorder=0)
        floors = [float(np.nanmedian(width["noise_floor"])) for _, width in own.groupby("bits")]
        low = min([own["delta"][own["delta"] > 0].min(), *(floor for floor in floors if floor > 0)])
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.set(
            yscale="log",
            title=model,
            xlabel="bytes of the matrices",
            ylim=(low / 2, None),
        )
    axes[0, 0].set_ylabel("δ (nats per token)")
    handles = [
        Line2D([], [], ls="", marker="o", color=colour, label=family or OTHER_FAMILY)
        for family, colour in COLOURS.items()
    ]
    handles.append(Line2D([], [], ls="", marker="o", color="black", mfc="none", label="hollow: other packages"))
    handles.append(Line2D([], [], lw=5, color="#dddddd", label="noise floor (median)"))
    figures.legend(figure, handles, 3)
    return figure


def report(work: Path) -> None:
    """Write the table and the figure of the models that are measured."""
    tables = []
    for folder in sorted((work / "measured").iterdir()):
        if not all(Store(path).measurements() for path in folder.iterdir()):
            continue
        sides, design = sides_of(folder)
        tables.append(compared(sides, design, folder.name))
    table = pd.concat(tables, ignore_index=True)
    table.to_csv(HERE / "quantizers.csv", index=False, float_format="%.6g")
    figures.write(HERE, table, {"delta_vs_bytes": SimpleNamespace(data=lambda table: table, draw=drawn)})
    judged = table[table["best"] != ""]
    lines = [
        "| model | bits | ours | δ | best package | difference | ± |",
        "| :-- | --: | :-- | --: | :-- | --: | --: |",
    ]
    lines += [
        f"| {r['model']} | {r['bits']} | {r['method']} | {r['delta']:.4f} | {r['best']} | {r['over_best']:+.4f} "
        f"| {r['over_best_se']:.4f} |"
        for r in records(judged)
    ]
    (HERE / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def main() -> None:
    """Parse arguments; train, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--stage", default="all", choices=("train", "measure", "report", "all"))
    parser.add_argument("--model", choices=sorted(WINDOWS), help="measure this one only")
    parser.add_argument("--side", help="measure this one only: all, or a name of VARIANTS")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    if arguments.stage in ("train", "all"):
        train(work, arguments.threads)
    if arguments.stage in ("measure", "all"):
        for model, root in {"llama-160k": EMBEDDED, "llama-5m": work / "llama-5m" / "trunk"}.items():
            last = max(root.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
            if arguments.model in (None, model):
                measure(work, model, last, arguments.side)
    if arguments.stage in ("report", "all"):
        report(work)


if __name__ == "__main__":
    main()
