"""The section of `report.md` on forecasts held against what happened, from the `backtest.json` of the folder.

A backtest of the 24 lines of two runs takes about 16 seconds, most of them for the joint law's refits, so `ptq-eval
run` does not make it: it shows the one that `ptq-eval backtest` made, if that is of the same measurements.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptq_eval.laws.forecast.backtest import MIN_TO_TEST, What
from ptq_eval.report.backtest.page import HEADINGS, METHOD_NAMES, NAME, UNITS, VERSION
from ptq_eval.report.common import files
from ptq_eval.report.common.data import Study
from ptq_eval.report.common.numbers import number, percent, short
from ptq_eval.report.common.tables import markdown

TITLE = "Had you asked earlier"
_HEADER = ("about", "method", "n", "stated", "inside", "width", "interval score")
_AGAIN = "`ptq-eval backtest OUT` makes it again."


def read(out: Path) -> dict[str, Any] | None:
    """The backtest below `out`; None without one.  Raises OutputMismatchError for a damaged file."""
    return files.read_json(out / NAME, ("version", "records", "summary", "figures", "level"), "ptq-eval backtest OUT")


def section(found: Mapping[str, Any] | None, study: Study) -> str:
    """The backtest in short, or how to make one; "" where no run has enough checkpoints."""
    checkpoints = study.measured.groupby("trajectory")["tokens"].nunique()
    if checkpoints.empty or checkpoints.max() < MIN_TO_TEST:
        return ""
    if found is None:
        return (
            "`ptq-eval backtest OUT` forecasts each run from its earlier checkpoints, compares with the later ones, "
            "and adds the result here.\n"
        )
    return body(found, study.digest)


def body(found: Mapping[str, Any], records: str) -> str:
    """One row per method for the loss and D_crit, all bit-widths and distances together, and one fan chart.

    records: the digest of the page's measurements.
    """
    if found["version"] != VERSION:
        return f"**Out of date: another version of ptq-eval made the backtest.** {_AGAIN}\n"
    if found["records"] != records:
        return f"**Out of date: the backtest was made of other measurements than those of this page.** {_AGAIN}\n"
    level = f"{100 * number(found['level']):g} %"
    text = (
        "At every checkpoint from the fourth on, what the checkpoints up to it say of later ones was held against what "
        f"was measured. *Inside*: the share of statements that later checkpoints did not refute, of {level} intervals; "
        "the interval score is better the lower it is; for D_crit it is that of which checkpoint has the least loss. "
        "By bit-width and distance in `backtest.md`.\n\n"
    )
    rows = []
    for what in (What.LOSS, What.TURN):
        for one in found["summary"]:
            if (one["what"], one["bits"], one["ahead"]) == (what, None, None):
                numbers = [percent(one["made"]), percent(one["coverage"]), short(one["width"]), short(one["score"])]
                about = f"{HEADINGS[what]} ({UNITS[what]})"
                rows.append([about, METHOD_NAMES.get(one["method"], one["method"]), f"{one['n']}", *numbers])
    text += markdown(_HEADER, rows, left=2)
    charts = found["figures"] or ()
    return text + "".join(
        f"\n![Loss after quantization, forecast and measured](figures/{name}.png)\n" for name in charts[:1]
    )
