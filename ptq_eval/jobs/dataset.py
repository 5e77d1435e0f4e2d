"""The results of a run as data for others: `dataset("out", "data")` writes Parquet, SQLite, lm-eval's format, a card.

The records stay where they are; what is written is made of them anew each time.
"""

from __future__ import annotations

from pathlib import Path

from ptq_eval.report.dataset import card, lm_eval, tables
from ptq_eval.results.calibrations import completed
from ptq_eval.results.load import collect
from ptq_eval.results.selection import select
from ptq_eval.results.store import Store
from ptq_eval.results.tasks import answered


def dataset(out: str | Path, folder: str | Path) -> list[Path]:
    """Write the results in `out` below `folder`; the paths written.

    Raises NothingToFitError if `out` is not the output of a run, OutputMismatchError if it is damaged, OutputFullError.
    """
    store, folder = Store(out), Path(folder)
    run = store.require()
    results = collect(store, run)
    every = completed(store.measurements(), run)
    kept, _ = select(every, results.checkpoints)
    answers = answered(every, results.checkpoints)
    frames = {tables.DEGRADATION: tables.typed(results.frame), tables.WINDOWS: tables.windows(kept)}
    errors = dict(zip(results.frame["key"], results.frame["loss_q_se"].fillna(results.frame["loss_fp_se"])))
    written = tables.write_parquet(folder, frames)
    written.append(tables.write_sqlite(folder / "results.sqlite", frames))
    models = [lm_eval.name_of(m) for m in kept if m.nll]
    written += lm_eval.write(folder / "lm-eval", [*kept, *answers], errors)
    return [*written, card.write(folder, results.frame, run, len(frames[tables.WINDOWS]), models)]
