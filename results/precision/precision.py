"""The study of this folder, from texts to a table.

    python results/precision/precision.py prepare BOOKS OTHER_BOOKS WORK
    python results/precision/precision.py all WORK --stage 0
    python results/precision/precision.py train WORK --stage 4
    python results/precision/precision.py measure WORK
    python results/precision/precision.py table WORK
    python results/precision/precision.py compare WORK

`prepare` is needed from stage 1 on.  BOOKS and OTHER_BOOKS are plain text (.txt, or .txt.bz2), with no book in both.
`train` is `ptq-eval pretrain --study`; `measure` measures the runs that are complete and not measured yet, may run
beside `train`, and ends; `table` gathers what is measured into table.csv.gz in WORK.  `all` does the three.  What was
interrupted goes on when repeated.  `compare` says how far the table in WORK is from the one of this folder.
"""

from __future__ import annotations

import argparse
import bz2
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

HERE = Path(__file__).resolve().parent
STUDY = HERE / "study.toml"
CALIBRATION_CHARS = 2_000_000
TRAIN_CHARS = {"books.txt": 24_000_000, "books-long.txt": 120_000_000}


def prepare(books: Path, others: Path, work: Path) -> None:
    """Write the texts of the study to `work`: training from the start of `books`, calibration from its end."""
    work.mkdir(parents=True, exist_ok=True)
    text = _read(books)
    rest = text[:-CALIBRATION_CHARS]
    for name, chars in TRAIN_CHARS.items():
        (work / name).write_text(rest[:chars], encoding="utf-8")
    (work / "calibration.txt").write_text(text[-CALIBRATION_CHARS:], encoding="utf-8")
    (work / "evaluation.txt").write_text(_read(others), encoding="utf-8")


def _read(path: Path) -> str:
    opener = bz2.open if path.suffix == ".bz2" else open
    with opener(path, "rt", encoding="utf-8") as handle:
        return handle.read()


OPTIONS: dict[str, Any] = {
    "quantizers": ("rtn", "gptq", "awq"), "bits": (2, 3, 4, 5, 6, 8), "eval_windows": 64, "calib_windows": 32,
}  # fmt: skip
GROUPS = {"groups": 16, "rows": None}
TEXTS = {"books": ("evaluation.txt", "calibration.txt"), "stdlib": ("stdlib:evaluation", "stdlib:calibration")}


def train(work: Path, stage: int | None = None) -> None:
    """Train the stages of the study up to this one, on a GPU if there is one."""
    command = [sys.executable, "-m", "ptq_eval", "pretrain", "--study", str(STUDY), "-o", "study"]
    work.mkdir(parents=True, exist_ok=True)
    subprocess.run([*command, *(["--stage", str(stage)] if stage is not None else [])], cwd=work, check=True)


def measure(work: Path) -> None:
    """Measure every run that is complete, each in a folder of its own, in the order of the stages."""
    os.chdir(work)  # so that records name texts and checkpoints as a reader elsewhere would
    for run in complete():
        for name, size in GROUPS.items():
            out = Path("measured") / name / run.name
            if (out / "done").exists():
                continue
            frame, problems = measured(run, out, **OPTIONS, group_size=size)
            frame.to_csv(out / "degradation.csv", index=False)
            print(run.name, name, len(frame), "rows", flush=True)
            if not problems:
                (out / "done").touch()


def complete() -> list[Any]:
    """The runs of the study whose checkpoints are all in this folder, in the order of the stages."""
    from ptq_eval.pretrain.stacked.study import read, status

    study = read(STUDY)
    return [run for run, at in zip(study.runs, status(study, "study")) if at.saved >= at.planned]


def measured(run: Any, out: Path, **options: Any) -> tuple[pd.DataFrame, list[Any]]:
    """Every measurement of a run in this folder, with `place`, the part and the folder of its checkpoint; and problems.

    `out` keeps the records: the same call goes on where one ended.
    """
    from ptq_eval.checkpoints import Overrides
    from ptq_eval.config.run import RunConfig
    from ptq_eval.jobs.run import planned

    evaluation, calibration = TEXTS[run.text.split("-")[0].split(":")[0].removesuffix(".txt")]
    config = RunConfig(**options, eval_text=evaluation, calib_text=calibration)
    grid = planned([Path("study/runs") / run.name], out, config, Overrides())
    problems = grid.measure(grid.jobs())
    print(*problems, sep="\n", end="", flush=True)
    results = grid.results()
    places = {(c.run, c.step): "/".join(Path(c.location).parts[-2:]) for c in results.checkpoints}
    keys = zip(results.frame["run"], results.frame["step"])
    return results.frame.assign(place=[places[key] for key in keys]), problems


OF_THE_TABLE = (
    "tokens", "params", "tokens_per_param", "quantizer", "bits", "group_size", "bits_per_weight", "loss_fp",
    "loss_fp_se", "loss_q", "delta", "delta_se", "kl", "bpb_fp", "noise_floor", "windows", "calibration", "status",
    "message", "weights_sha", "quantizer_version",
)  # fmt: skip
OF_THE_RUN = (
    "width", "layers", "seed", "schedule", "learning_rate", "warmup", "decay", "batch_size", "optimizer",
    "weight_decay", "weights", "activations", "kv", "low_precision_share",
)  # fmt: skip
OF_THE_CHECKPOINT = ("schedule_phase", "in_low_precision", "epochs", "eval_loss", "decay_steps")


def table(work: Path) -> None:
    """Gather what is measured into `table.csv.gz`, a row per measurement, and what is trained into `trained.csv.gz`, a
    row per checkpoint."""
    os.chdir(work)
    found = pd.DataFrame(list(_rows()))
    order = ["run", "part", "step", "grouping", "quantizer", "bits"]
    found = found.sort_values(order, kind="stable")
    found.to_csv("table.csv.gz", index=False, float_format="%.6g", compression={"method": "gzip", "mtime": 0})
    trained = pd.DataFrame(list(_trained())).sort_values(["run", "part", "step"], kind="stable")
    trained.to_csv("trained.csv.gz", index=False, float_format="%.6g", compression={"method": "gzip", "mtime": 0})
    quantized = found[found["quantizer"] != "none"]
    print(
        f"{len(quantized)} measurements of {found['run'].nunique()} runs, {trained['run'].nunique()} trained",
        flush=True,
    )


def _of_run(run: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """pretrain.json of a run, its columns of the table, and the state of each checkpoint by part and folder."""
    home = Path("study/runs") / run
    about = json.loads((home / "pretrain.json").read_text())
    columns = {name: about["config"][name] for name in OF_THE_RUN}
    columns["peak_learning_rate"] = columns.pop("learning_rate")
    states = {
        str(state.parent.relative_to(home)): json.loads(state.read_text())
        for state in home.glob("*/checkpoint-*/trainer_state.json")
    }
    return about, columns, states


def _trained() -> Iterator[dict[str, Any]]:
    for run in complete():
        about, columns, states = _of_run(run.name)
        for place, state in states.items():
            tokens, params = state["num_input_tokens_seen"], about["params_non_embedding"]
            yield {
                "run": run.name, "part": place.split("/")[0], "step": state["global_step"], **columns,
                "text": about["text"], "tokens": tokens, "params": params, "tokens_per_param": tokens / params,
                "eval_loss": state["eval_loss"],
            }  # fmt: skip


def _rows() -> Iterator[dict[str, Any]]:
    for path in sorted(Path("measured").glob("*/*/degradation.csv")):
        grouping, run = path.parts[1:3]
        about, of_run, states = _of_run(run)
        for row in pd.read_csv(path).to_dict("records"):
            state = states[row["place"]]
            yield {
                "run": run, "part": row["place"].split("/")[0], "step": row["step"], "grouping": grouping, **of_run,
                "text": about["text"], "text_digest": about["text_digest"][:16],
                "learning_rate": state["learning_rate"], **{name: state[name] for name in OF_THE_CHECKPOINT},
                **{name: row[name] for name in OF_THE_TABLE},
            }  # fmt: skip


MEASURED = ["run", "part", "step", "grouping", "quantizer", "bits"]
CELL = ["text", "params", "schedule", "part", "step", "grouping", "quantizer", "bits"]
"""What measurements of different seeds have in common."""


def compare(work: Path) -> None:
    """Print how far delta of a repeated study is from that of this folder, beside the scatter of seeds."""
    here, there = (pd.read_csv(folder / "table.csv.gz", low_memory=False) for folder in (HERE, work))
    print(repeated(here, there).to_string(index=False, float_format="{:.2g}".format), flush=True)


def repeated(here: pd.DataFrame, there: pd.DataFrame) -> pd.DataFrame:
    """A row for each number of bits: how far the same measurements of two tables are apart.

    between_repeats: the root mean square difference of delta; between_seeds: that of two seeds of `here`, √2 times
    their standard deviation.  means_agree: the share of means over three seeds at least that differ by no more than a
    t interval at 95 % of the scatter of seeds.
    """
    both = here[here["quantizer"] != "none"].merge(there[[*MEASURED, "delta"]], on=MEASURED, suffixes=("", "_again"))
    both["apart"] = both["delta_again"] - both["delta"]
    rows = []
    for bits, own in both.groupby("bits"):
        cells = own.groupby([name for name in CELL if name != "bits"])
        runs, variance = cells.size(), cells["delta"].var()
        limit = pd.Series(stats.t.ppf(0.975, (runs - 1).clip(lower=1)), runs.index) * (2 * variance / runs) ** 0.5
        agree = cells["apart"].mean().abs() <= limit
        rows.append({
            "bits": bits, "runs": own["run"].nunique(), "measurements": len(own),
            "between_repeats": (own["apart"] ** 2).mean() ** 0.5, "between_seeds": (2 * variance.mean()) ** 0.5,
            "means_agree": agree[runs >= 3].mean(),
        })  # fmt: skip
    return pd.DataFrame(rows)


def everything(work: Path, stage: int | None = None) -> None:
    """Train, measure, and gather."""
    work = work.resolve()
    train(work, stage)
    measure(work)
    table(work)


def main() -> None:
    """Parse arguments and call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    calls = {
        "prepare": prepare, "train": train, "measure": measure, "table": table, "compare": compare, "all": everything,
    }  # fmt: skip
    for name, call in calls.items():
        own = parts.add_parser(name)
        own.set_defaults(call=call)
        for argument in ("books", "others") if name == "prepare" else ():
            own.add_argument(argument, type=Path)
        own.add_argument("work", type=Path)
        if name in ("train", "all"):
            own.add_argument("--stage", type=int, help="stop after this stage")
    arguments = vars(parser.parse_args())
    arguments.pop("call")(**arguments)


if __name__ == "__main__":
    main()
