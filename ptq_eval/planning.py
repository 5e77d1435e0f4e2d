"""Where a plan's constants come from on disk: an output folder, whose records are fitted again, or a stored fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ptq_eval.errors import NothingToFitError, UnknownPluginError
from ptq_eval.laws.planning.fits import REPLICATES, from_records, from_stored
from ptq_eval.laws.planning.source import Source, from_preset
from ptq_eval.laws.presets import PRESETS

if TYPE_CHECKING:
    from ptq_eval.laws.presets import Preset

Progress = Callable[[str, float, float], None]


def preset_named(name: str, *, offsets: bool = True) -> Source:
    """Published constants by name, without the offsets n of N_eff if asked.  Raises UnknownPluginError."""
    if name not in PRESETS:
        raise UnknownPluginError.of("preset", name, PRESETS)
    preset: Preset = PRESETS[name]
    return from_preset(preset if offsets else preset.without_offsets())


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

    params: the N asked about, for folders with fewer than three sizes.  Raises NothingToFitError for a folder that has
    neither, PlanError where a quantizer has to be named.
    """
    from ptq_eval.records import Checkpoint
    from ptq_eval.store import Store
    from ptq_eval.table import as_rows, tabulate

    out = Path(out)
    if not (out / "records").is_dir() and (out / "fit.json").is_file():
        return from_stored(_read(out / "fit.json"), name=str(out))
    store = Store(out)
    checkpoints = [Checkpoint.from_dict(entry) for entry in store.require()["checkpoints"]]
    frame, windows = tabulate(store.measurements(), checkpoints)
    if progress:
        progress("fitting", 0.0, 0.0)
    named = {"quantizer": quantizer, "params": params, "name": str(out)}
    return from_records(as_rows(frame), windows, **named, seed=seed, n_boot=bootstrap)


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise NothingToFitError("this fit cannot be read", got=f"{path}: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("fits"), list):
        raise NothingToFitError("this is not the content of a fit.json", got=path)
    return content
