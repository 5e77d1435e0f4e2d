"""Where a plan's constants come from on disk: an output folder, whose records are fitted again, or a stored fit."""

from __future__ import annotations

import difflib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ptq_eval.errors import NothingToFitError, UnknownPluginError
from ptq_eval.laws.formulas.presets import PRESETS
from ptq_eval.laws.plan.fits import REPLICATES, from_records
from ptq_eval.laws.plan.source import Source, from_preset
from ptq_eval.laws.plan.stored import from_stored

Progress = Callable[[str, float, float], None]


def preset_named(name: str, *, offsets: bool = True) -> Source:
    """Published constants by name, or by several joined by commas, without the offsets n of N_eff if asked.

    Raises UnknownPluginError, and PlanError for presets that do not go together.
    """
    names = list(dict.fromkeys(part.strip() for part in name.split(",")))
    if unknown := [part for part in names if part not in PRESETS]:
        near = difflib.get_close_matches(unknown[0].upper(), PRESETS, n=1)
        remedy = f"did you mean {near[0]}?" if near else "choose one of these, or several joined by commas"
        raise UnknownPluginError("unknown preset", got=repr(unknown[0]), allowed=", ".join(PRESETS), remedy=remedy)
    presets = [PRESETS[part] for part in names]
    return from_preset(*(preset if offsets else preset.without_offsets() for preset in presets))


def folder(
    out: str | Path,
    *,
    quantizer: str | None = None,
    params: float | None = None,
    seed: int = 0,
    bootstrap: int = REPLICATES,
    progress: Progress | None = None,
) -> Source:
    """The constants of an output folder: of its records, fitted again, or else of its `fit.json`.

    params: the N asked about, for folders with fewer than three sizes.  What `fit.json` says of the D_crit of a run is
    kept where it was made of these records; otherwise they are judged as `fit` would.  Raises NothingToFitError for a
    folder that has neither, PlanError where a quantizer has to be named.
    """
    out = Path(out)
    content = _read(out / "fit.json") if (out / "fit.json").is_file() else {}
    if content and not (out / "records").is_dir():
        options: dict[str, Any] = {"quantizer": quantizer, "params": params, "name": str(out)}
        return from_stored(content, **options, replicates=_replicates(out), rows=_rows(out))
    from ptq_eval.records import Checkpoint
    from ptq_eval.results.store import Store
    from ptq_eval.results.table import as_rows, tabulate

    store = Store(out)
    checkpoints = [Checkpoint.from_dict(entry) for entry in store.require()["checkpoints"]]
    frame, windows = tabulate(store.measurements(), checkpoints)
    if progress:
        progress("fitting", 0.0, 0.0)
    named = {"quantizer": quantizer, "params": params, "name": str(out)}
    return from_records(as_rows(frame), windows, **named, seed=seed, n_boot=bootstrap, told=content)


def _replicates(out: Path) -> dict[str, np.ndarray]:
    """The bootstrap's constants of each fit, by its place in `fit.json`; none where they are not kept."""
    path = out / "replicates.npz"
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as kept:
            return {key: kept[key] for key in kept.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise NothingToFitError("these replicates cannot be read", got=f"{path}: {error}") from error


def _rows(out: Path) -> list[dict[str, Any]]:
    """The rows of `degradation.csv` that say what was measured, where that is kept."""
    path = out / "degradation.csv"
    if not path.is_file():
        return []
    import pandas as pd

    table = pd.read_csv(path)
    names = ["run", "tokens", "params", "quantizer", "bits"]
    return table.reindex(columns=names).astype(object).to_dict("records")


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise NothingToFitError("this fit cannot be read", got=f"{path}: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("fits"), list):
        raise NothingToFitError("this is not the content of a fit.json", got=path)
    return content
