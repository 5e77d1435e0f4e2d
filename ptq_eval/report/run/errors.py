"""What the standard errors of δ are about, and what they do not cover: sentences of the report."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from ptq_eval.report.common.data import Frame, Study
from ptq_eval.report.common.numbers import short
from ptq_eval.report.common.words import plural
from ptq_eval.sampling import Covers

_COVERS = {
    Covers.TEXT: "are about this text as a whole, from which the windows are drawn at random",
    Covers.TEXTS: "are about other documents of this kind: windows of one document count together",
    Covers.PASSAGES: "are about other passages of the same documents only, in stretches of neighbouring windows",
}


def of_windows(study: Study) -> Iterator[str]:
    """What the errors are about, and how many independent windows they are worth."""
    rows = study.measured
    if "covers" not in rows:  # tables of earlier versions
        return
    for covers, own in rows[rows["covers"].isin([*Covers])].groupby("covers", sort=False):
        found = own["effective_windows"].astype(float).quantile([0.25, 0.5, 0.75]).dropna().round().astype(int)
        low, middle, high = found if len(found) else (None, None, None)
        half = f" (half of the deltas: {low} to {high})" if low != high else ""
        worth = f"; the windows are worth {middle} independent ones{half}" if high else ""
        yield f"Standard errors of δ {_COVERS[Covers(covers)]}{worth}."


def calibrated_once(study: Study) -> list[str]:
    """The configurations with one draw of the calibration windows; empty for tables of earlier versions."""
    rows = _numbers(study, "calibration_draws")
    return list(dict.fromkeys(rows.loc[rows["calibration_draws"] == 1, "label"]))


def of_calibration(study: Study) -> Iterator[str]:
    """Whether errors cover another draw of the calibration windows, and what that adds to them; empty for methods
    without calibration, and for tables of earlier versions."""
    rows = _numbers(study, "calibration_draws", "calibration_se")
    if once := calibrated_once(study):
        yield (
            f"No error or interval here covers another draw of the calibration windows of {', '.join(once)}: with one "
            "draw, nothing is known of others (`--calib-repeats 3` measures three)."
        )
    several = rows[rows["calibration_draws"] > 1]
    for label, own in several[several["calibration_se"].notna()].groupby("label", sort=False):
        sampling = (own["delta_se"] ** 2 - own["calibration_se"] ** 2).clip(lower=0) ** 0.5
        low, middle, high = (own["delta_se"] / sampling).quantile([0.25, 0.5, 0.75])
        draws = sorted({int(k) for k in own["calibration_draws"]})
        yield (
            f"δ of {label} is a mean over {' or '.join(map(str, draws))} draws of the calibration windows. Errors and "
            f"intervals cover the draw, which makes the errors {short(middle)} times as large as evaluation windows "
            f"alone do (half of the deltas: {short(low)} to {short(high)} times)."
        )


def of_seeds(study: Study) -> Iterator[str]:
    """How much δ changes from one seed to the next, where runs differ in their seed alone."""
    rows = _numbers(study, "seeds", "seed_sd")
    rows = rows[rows["seeds"] > 1]
    if rows.empty:
        return
    shares = (rows["seed_sd"] / rows["delta"].abs()).groupby(rows["bits"]).median()
    said = ", ".join(f"{short(100 * share)} % of δ at {bits:.0f} bits" for bits, share in shares.items())
    runs = plural(rows["run"].nunique(), "run")
    yield (
        f"{runs} differ in the seed alone from another one; between seeds, δ has a standard deviation of {said} "
        "(medians). That is part of the noise floor, and of no error or interval: these are about each run as it is."
    )


def _numbers(study: Study, *names: str) -> Frame:
    """The measured rows with some columns as numbers; no rows where the table lacks them."""
    rows = study.measured
    if any(name not in rows for name in names):
        return rows.iloc[:0].reindex(columns=[*rows.columns, *(name for name in names if name not in rows)])
    return rows.assign(**{name: pd.to_numeric(rows[name], errors="coerce") for name in names})
