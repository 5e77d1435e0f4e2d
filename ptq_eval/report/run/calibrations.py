"""What another calibration does to δ: a table of paired differences to the first condition, and sentences.

Laws, verdicts and all other tables are of the first condition alone; the differences are computed with the fit
(`results.calibrations.effects`), which sees the losses of each window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ptq_eval.report.common import tables
from ptq_eval.report.common.data import Frame, Study
from ptq_eval.report.common.numbers import MISSING, number, percent, rough, short, with_error
from ptq_eval.report.common.words import listed, plural
from ptq_eval.results.calibrations import COLUMNS
from ptq_eval.results.over_rounding import holm

TITLE = "Other calibrations"
FACTORS = {"calib_text": "text", "calib_windows": "windows", "calib_length": "tokens per window"}
"""What a condition consists of, and how figures call it."""
_HEADER = (
    *("configuration", "bits", "calibration", "δ of the first", "difference", "share of δ"),
    *("p", "sd between seeds"),
)


def summary(study: Study) -> Frame:
    """The effects in `fit.json` with the `label` of their configuration and `varied`, the factors that differ from the
    first condition; those that differ in one factor come first.  p tests for no effect on the mean over checkpoints,
    adjusted by Holm's procedure over all rows, and NaN where the error does not cover the draw of the windows."""
    found: list[dict[str, Any]] = []
    for entry in study.fit.get("calibrations") or ():
        varied = [name for name in FACTORS if entry[name] != entry["first"][name]]
        found.append({**entry, "label": study.label_of(entry), "varied": varied})
    texts = list(dict.fromkeys(row["calib_text"] for row in found))
    order = {label: i for i, label in enumerate(study.labels)}
    found.sort(
        key=lambda row: (
            *(str(row["trajectory"]), order.get(row["label"], -1), row["bits"], len(row["varied"])),
            *(texts.index(row["calib_text"]), row["calib_windows"], row["calib_length"]),
        )
    )
    alone = [_p(row) if row["covers_calibration"] else math.nan for row in found]
    return pd.DataFrame(found).assign(p=holm(np.array(alone)))


def _p(row: Mapping[str, Any]) -> float:
    df = number(row["df"]) if row["df"] is not None else math.inf
    return float(2 * stats.t.sf(abs(row["difference"]) / row["error"], df)) if row["error"] > 0 else math.nan


def section(study: Study) -> str:
    """The tables in Markdown, with what they mean."""
    found = summary(study)
    text = f"{' '.join(sentences(study))}\n\n"
    if found.empty:
        return text
    text = f"![δ under other calibrations](figures/delta_vs_calibration.png)\n\n{text}"
    runs = list(dict.fromkeys(found["trajectory"]))
    for run in runs:
        rows = [_row(row) for row in found[found["trajectory"] == run].to_dict("records")]
        heading = f"### {tables.cell(run)}\n\n" if len(runs) > 1 else ""
        text += heading + tables.markdown(_HEADER, rows) + "\n"
    return text


def _row(row: Mapping[str, Any]) -> list[str]:
    return [
        row["label"],
        f"{row['bits']:.0f}",
        condition_text(row),
        short(row["delta_first"]),
        with_error(row["difference"], row["error"]),
        _share(row["difference"], row["delta_first"]),
        "< 0.001" if row["p"] < 0.001 else rough(row["p"]),
        short(row["draw_sd"]),
    ]


def _share(difference: float, delta: float) -> str:
    """A difference as a signed share of δ; a dash where that is not positive."""
    return ("−" if difference < 0 else "+") + percent(abs(difference) / delta) if delta > 0 else MISSING


def sentences(study: Study) -> Iterator[str]:
    """Which condition laws are fitted under, what the table shows, and whether its errors cover the draw."""
    yield (
        f"Laws, verdicts and all other tables and figures are of the first calibration: {listed(first(study))}. "
        "Here the others are compared with it on the same evaluation windows: the mean over checkpoints of δ minus "
        "δ of the first, with one standard error of paired differences."
    )
    effects = study.fit.get("calibrations") or ()
    if effects and all(entry["covers_calibration"] for entry in effects):
        yield "Errors cover another draw of the windows; p tests for no effect, adjusted for all rows (Holm)."
    elif effects:
        yield (
            "With a single seed, errors do not cover another draw of the windows: a difference may come from the "
            "draw, and no p is stated (`--calib-seed 0,1,2` measures three)."
        )


def first(study: Study) -> list[str]:
    """The first condition of each run, in words."""
    rows = study.rows[study.rows["calib_text"].notna()].drop_duplicates([*COLUMNS, "calib_seed"])
    return list(dict.fromkeys(condition_text(row) + _seeds(row["calib_seed"]) for row in rows.to_dict("records")))


def condition_text(row: Mapping[str, Any]) -> str:
    """A condition in words."""
    windows = plural(int(number(row["calib_windows"])), "window")
    return f"{row['calib_text']}, {windows} of {number(row['calib_length']):.0f} tokens"


def _seeds(seeds: Any) -> str:
    """ ", seeds 0, 1, 2"; a table read from a file holds a number for a single one."""
    if seeds is None or seeds != seeds:
        return ""
    named = str(seeds).removesuffix(".0").split(",")
    return f", seed{'s' * (len(named) > 1)} {', '.join(named)}"
