"""The page of an output folder while it is being filled: what is measured so far, and how much of it.

Nothing is written and nothing is fitted: until `fit.json` belongs to the measurements, the sections that the fit
decides are not shown.  The page is made again only when a file of the folder has changed.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from ptq_eval.errors import EmptyFolderError, NothingToFitError, PtqEvalError
from ptq_eval.report import fit_of, studies, with_texts
from ptq_eval.report.common.data import Study
from ptq_eval.report.common.words import plural
from ptq_eval.report.run.page import OF_THE_FIT
from ptq_eval.report.web import page
from ptq_eval.results.load import collect
from ptq_eval.results.store import Store

_WATCHED = ("run.json", "fit.json", "records/*.jsonl*", "planned/*.json", "sensitivity.json", "comparison.json")
_WATCHED += ("backtest.json", "mixed.json")


@dataclass(frozen=True)
class Progress:
    """Measured and failed trials of each checkpoint, and those planned, where that is known."""

    measured: Mapping[str, int]
    failed: Mapping[str, int]
    planned: Mapping[str, int]

    @cached_property
    def done(self) -> int:
        """Trials that need not be waited for."""
        return sum(self.measured.values()) + sum(self.failed.values())

    @cached_property
    def total(self) -> int:
        """Planned trials; 0 where unknown."""
        return sum(self.planned.values())


class Folder:
    """An output folder, as a page.  Raises EmptyFolderError where there is no such folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise EmptyFolderError(
                "there is no such output folder",
                got=folder,
                remedy=f"begin the run first: ptq-eval run FOLDER -o {folder}",
            )
        self._store, self._lock = Store(self.folder), threading.Lock()
        self._made: tuple[str, str] = ("", "")

    def version(self) -> str:
        """Changes whenever a file changes that the page is made of."""
        paths = sorted(path for pattern in _WATCHED for path in self.folder.glob(pattern))
        found = []
        for path in paths:
            try:
                stat = path.stat()
            except FileNotFoundError:  # replaced this moment
                continue
            found.append(f"{stat.st_mtime_ns:x}.{stat.st_size:x}")
        return "-".join(found) or "empty"

    def state(self) -> dict[str, Any]:
        """The version, and the banner that says how far the run is."""
        with self._lock:
            return {"version": self.version(), "banner": self._banner()}

    def html(self) -> str:
        """The page of the folder as it is now."""
        with self._lock:
            version = self.version()
            if self._made[0] != version:
                self._made = version, self._page(version)
            return self._made[1]

    def progress(self) -> Progress:
        """How much of what the last call planned is measured; all records where no plan is known."""
        planned = self._store.planned()
        keys = {key for own in planned.values() for key in own}
        measured, failed = Counter[str](), Counter[str]()
        for one in self._store.measurements():
            if not keys or one.trial.key() in keys:
                (failed if one.status == "failed" else measured)[one.trial.checkpoint.name] += 1
        return Progress(measured, failed, {name: len(own) for name, own in planned.items()})

    def _page(self, version: str) -> str:
        try:
            run = self._store.require()
            results = collect(self._store, run)
            fit = fit_of(results)
        except PtqEvalError as problem:
            words = "" if isinstance(problem, NothingToFitError) else f"<p>{escape(str(problem))}</p>"
            return page.waiting(self.folder.name, page.Live(self._framed(version, words)))
        study = Study(results.frame, with_texts(fit) if fit else {}, results.run, results.points)
        words = "" if fit else "<p>The answer and the fits follow when the run ends.</p>"
        live = page.Live(self._framed(version, words), () if fit else OF_THE_FIT)
        return page.document(study, studies(self.folder) if fit else (), figures=self.folder / "figures", live=live)

    def _framed(self, version: str, words: str) -> str:
        return (
            f'<section class="live" aria-label="Progress" data-version="{version}">'
            f'<div id="progress">{self._banner()}</div>{words}</section>\n'
        )

    def _banner(self) -> str:
        progress = self.progress()
        if not progress.done and not progress.total:
            return f"<p><strong>No measurement yet in {escape(str(self.folder))}.</strong> This page waits for one.</p>"
        failed = sum(progress.failed.values())
        words = (
            f"{progress.done:,} of {plural(progress.total, 'measurement')}"
            if progress.total
            else (f"{plural(progress.done, 'measurement')}, of an unknown number")
        )
        words += f", {failed:,} failed" if failed else ""
        bar = (
            f'<progress value="{progress.done}" max="{progress.total}" aria-label="Measurements"></progress>'
            if progress.total
            else ""
        )
        return f"<p><strong>{words}</strong></p>{bar}{self._by_checkpoint(progress)}"

    @staticmethod
    def _by_checkpoint(progress: Progress) -> str:
        names = dict.fromkeys([*progress.planned, *progress.measured, *progress.failed])
        rows = "".join(
            f'<tr><td>{escape(name)}</td><td class="right">{progress.measured.get(name, 0)}</td>'
            f'<td class="right">{progress.failed.get(name, 0)}</td>'
            f'<td class="right">{progress.planned.get(name, "–")}</td></tr>'
            for name in names
        )
        heads = "".join(f'<th scope="col">{name}</th>' for name in ("checkpoint", "measured", "failed", "planned"))
        return (
            "<details><summary>By checkpoint</summary>"
            '<div class="scroll" tabindex="0" role="region" aria-label="Progress by checkpoint">'
            f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div></details>"
        )
